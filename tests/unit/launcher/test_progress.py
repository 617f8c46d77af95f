"""What a person sees."""

from __future__ import annotations

import io

from launcher.progress import Progress


def test_train_and_eval_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.record({"kind": "event", "step": 0, "event": "started", "detail": {"total_steps": 200}})
    train = {"kind": "train", "step": 10, "epoch": 0.5, "loss": 1.25, "learning_rate": 0.1}
    progress.record({**train, "images_per_s": 1234.4, "time_left_s": 61.2})
    evaluated = {"kind": "eval", "step": 20, "epoch": 1.0, "top1": 0.5, "top5": 0.75, "loss": 1.0}
    progress.record({**evaluated, "num_samples": 1000, "time_s": 2.0})
    first, second = stream.getvalue().splitlines()
    assert first == "epoch   0.50  step  10/200  loss 1.2500  LR 0.1  1,234 images/s  left 1:01"
    assert "top-1 50.00%" in second
    assert "1,000 images" in second

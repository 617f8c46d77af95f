"""What a person sees."""

from __future__ import annotations

import io
from pathlib import Path

from launcher.console import Progress, summary_lines
from launcher.run.directory import RunDirectory


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


def test_what_was_evaluated_is_said_where_it_is_the_average() -> None:
    stream = io.StringIO()
    record = {"kind": "eval", "step": 20, "top1": 0.5, "top5": 0.75, "loss": 1.0, "num_samples": 1000, "time_s": 2.0}
    for weights in ("model", "ema"):
        Progress(stream).record({**record, "weights": weights})
    model, average = stream.getvalue().splitlines()
    assert "evaluated: top-1" in model
    assert "evaluated, average of the weights: top-1" in average


def test_a_batch_larger_than_the_data_is_told_at_the_start() -> None:
    stream = io.StringIO()
    for batch_size in (1442, 5000):
        detail = {"total_steps": 6, "batch_size": batch_size, "num_samples": 1442}
        Progress(stream).record({"kind": "event", "step": 0, "event": "started", "detail": detail})
    [line] = stream.getvalue().splitlines()
    assert line.startswith("batch.size 5,000 is more than the 1,442 training images")


def test_the_bottleneck_is_printed_also_under_the_event_name_of_version_0_1() -> None:
    stream = io.StringIO()
    for name in ("bottleneck", "verdict"):
        Progress(stream).record({"kind": "event", "step": 3, "event": name, "detail": {"text": f"{name}: input"}})
    assert stream.getvalue().splitlines() == ["bottleneck: input", "verdict: input"]


SUMMARY = {"step": 40, "time_s": 9.0, "images_per_s": 90.0, "top1": 0.5, "top5": 0.75, "num_samples": 100}


def test_the_hint_is_to_train_twice_as_long(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    for duration, longer in (("20 epochs", "40 epochs"), ("1 epoch", "2 epochs"), ("75 steps", "150 steps")):
        lines = summary_lines(run, {**SUMMARY, "duration": duration})
        assert f"  train longer python -m launcher.train {run.config} duration='{longer}'" in lines


def test_the_console_says_where_the_newest_profile_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    summary = {**SUMMARY, "duration": "20 epochs"}
    assert not any("profile" in line for line in summary_lines(run, summary))
    trace = run.path / "profiles" / "attempt-2" / "rank-0.trace.json.gz"
    trace.parent.mkdir(parents=True)
    trace.touch()
    assert any(line.startswith(f"  profile      {trace}") for line in summary_lines(run, summary))

"""Run directories as a trainer leaves them, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.run.directory import RunDirectory

CONFIG = """\
schema: 1
name: {name}
model: {{name: resnet20, num_classes: 10}}
data: {{root: /images, source: imagefolder, resolution: 32, evaluation_crop: 1.0}}
batch: {{size: {batch}}}
batch_norm: {{span: global}}
optimizer: {{name: sgd, nesterov: true, momentum: 0.9, weight_decay: 0.0005}}
schedule: {{base_lr: 0.1, warmup: 2 epochs, decay: cosine}}
duration: 12 epochs
seed: 0
"""


def records_of(steps: int = 20, top1: float = 0.9, every: int = 5) -> list[dict[str, Any]]:
    """A train record for each step of 0.5 s, and an evaluation every few steps."""
    records: list[dict[str, Any]] = [
        {"kind": "event", "event": "started", "step": 0, "detail": {"total_steps": steps, "num_samples": 640}}
    ]
    for step in range(1, steps + 1):
        place = {"step": step, "epoch": step / 10}
        train = {"loss": 2.0 / step, "top1": 0.5, "learning_rate": 0.1, "images_per_s": 128.0, "gradient_norm": 1.0}
        records.append({"kind": "train", **place, **train, "step_time_s": 0.5, "data_wait_s": 0.1})
        if step % every == 0:
            counts = {"num_samples": 355, "weights": "model", "time_s": 1.0}
            records.append({"kind": "eval", **place, "top1": top1 * step / steps, "loss": 3.0 / step, **counts})
    return records


def write_run(
    storage: Path,
    name: str = "run",
    records: Sequence[dict[str, Any]] | None = None,
    *,
    config: str = CONFIG,
    batch: int = 64,
    finish: bool = True,
) -> RunDirectory:
    """Write a finished run, or with `finish=False` one without an end."""
    run = RunDirectory(storage, name)
    run.create()
    run.write_config(config.format(name=name, batch=batch))
    run.write_environment({"time": "now", "python": "3.11", "packages": {"torch": "2.14"}, "host": "n1"})
    number = run.begin_attempt({"place": "local", "workers": 2, "from_step": 0})
    written = records_of() if records is None else records
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in written))
    if finish:
        last = max((record["step"] for record in written), default=0)
        run.end_attempt(number, 0, "finished", last)
        run.mark_finished({"step": last, "duration": "12 epochs"})
    return run

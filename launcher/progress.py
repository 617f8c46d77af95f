"""What a person sees of a run: a line every few steps, and a summary at the end."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from launcher.run_directory import RunDirectory
from resnet_dist.durations import Duration


class _Nowhere(io.StringIO):
    """Takes lines that nobody reads."""

    def write(self, text: str) -> int:
        return len(text)


class Progress:
    """Prints records of metrics.jsonl, one line each, as they come."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._total_steps = 0

    def say(self, text: str) -> None:
        """Print a line of its own."""
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:  # whoever read has gone (`| head`); the run has not
            self._stream = _Nowhere()

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a record, if it is one that a person wants to see."""
        kind = record["kind"]
        if kind == "train":
            self.say(self._train(record))
        elif kind == "eval":
            average = ", average of the weights" if record.get("weights") == "ema" else ""
            self.say(
                f"{self._where(record)}  evaluated{average}: top-1 {record['top1']:.2%}  top-5 {record['top5']:.2%}"
                f"  loss {record['loss']:.4f}  ({record['num_samples']:,} images in {record['time_s']:.1f} s)"
            )
        elif record["event"] == "started":
            detail = record["detail"]
            self._total_steps = detail["total_steps"]
            if detail.get("batch_size", 0) > detail.get("num_samples", math.inf):
                self.say(
                    f"batch.size {detail['batch_size']:,} is more than the {detail['num_samples']:,} training images: "
                    "a step sees images more than once, and an epoch has less than one step"
                )
        elif record["event"] == "verdict":
            self.say(record["detail"]["text"])
        elif record["event"] == "stopped":
            self.say(f"{self._where(record)}  stopped on request")

    def _train(self, record: Mapping[str, Any]) -> str:
        minutes, seconds = divmod(round(record["time_left_s"]), 60)
        return (
            f"{self._where(record)}  loss {record['loss']:.4f}  LR {record['learning_rate']:.4g}"
            f"  {record['images_per_s']:,.0f} images/s  left {minutes}:{seconds:02d}"
        )

    def _where(self, record: Mapping[str, Any]) -> str:
        epoch = f"epoch {record['epoch']:6.2f}  " if "epoch" in record else ""
        width = len(str(self._total_steps))
        return f"{epoch}step {record['step']:>{width}}/{self._total_steps}"


def _twice(summary: Mapping[str, Any]) -> Duration:
    duration = Duration.parse(summary["duration"])
    return Duration(2 * duration.count, duration.unit)


def profile_lines(run: RunDirectory) -> list[str]:
    """Where the newest profile is, if there is any."""
    traces = sorted((run.path / "profiles").glob("*/rank-0.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return [f"  profile      {traces[-1]} (for ui.perfetto.dev; rank-0.txt beside it)"] if traces else []


def summary_lines(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """The end of a finished run: the result, and where everything is."""
    checkpoint = run.checkpoints / f"step-{summary['step']:08d}"
    return [
        "",
        f"finished  {summary['step']:,} steps, {summary['time_s']:.0f} s since this start"
        f" ({summary['images_per_s']:,.0f} images/s while training)",
        f"  top-1        {summary['top1']:.2%} of {summary['num_samples']:,} val images (top-5 {summary['top5']:.2%})",
        f"  checkpoint   {checkpoint}",
        f"  metrics      {run.metrics}",
        f"  TensorBoard  tensorboard --logdir {run.tensorboard}",
        f"  logs         {run.path / 'logs'}",
        *profile_lines(run),
        f"  train longer python -m launcher.train {run.config} duration='{_twice(summary)}'",
        f"  your images  python -m launcher.train {run.config} name=mine data.root=FOLDER model.num_classes=N",
    ]

"""Output of a run for a person: a line every few steps, and a summary at the end."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from launcher.formatting import count
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint.format import folder_name
from resnet_dist.recipe.durations import Duration
from resnet_dist.telemetry.metrics_file import BOTTLENECK_EVENTS


class Progress:
    """Prints records of metrics.jsonl, one line each. Neither a record nor its reader can make it fail."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._total_steps = "n/a"

    def print(self, text: str) -> None:
        """Print a line. A closed stream, a full disk, or a letter that the encoding lacks loses the line only."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self._stream, flush=True)

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a record, if it is of interest to a person. Values that are missing or not numbers are shown as n/a."""
        kind, event = record.get("kind"), record.get("event")
        detail = record.get("detail")
        if not isinstance(detail, Mapping):
            detail = {}
        if kind == "train":
            self.print(self._train(record))
        elif kind == "eval":
            average = ", average of the weights" if record.get("weights") == "ema" else ""
            self.print(
                f"{self._where(record)}  evaluated{average}: top-1 {_shown(record, 'top1', '.2%')}"
                f"{_top5('  top-5 {}', record)}  loss {_shown(record, 'loss', '.4f')}{_others(record)}"
                f"  ({_shown(record, 'num_samples', ',')} images{_bad(record)} in {_shown(record, 'time_s', '.1f')} s)"
            )
        elif event == "started":
            self._total_steps = _shown(detail, "total_steps", "d")
        elif event in BOTTLENECK_EVENTS:
            self.print(f"{detail.get('text', 'n/a')}")
        elif event == "bad_image" and detail.get("rank"):  # rank 0 has an event "warning" for its own
            self.print(f"WARNING: {detail.get('path', 'n/a')} {detail.get('problem', 'n/a')}: it is left out")
        elif event == "indexing":
            self.print(f"{detail.get('text', 'n/a')}")
        elif event == "warning":
            self.print(f"WARNING: {detail.get('text', 'n/a')}")
        elif event in ("target_reached", "target_missed"):
            self.print(f"{self._where(record)}  {str(event).replace('_', ' ')}: {_target(detail)}")
        elif event == "stopped":
            self.print(f"{self._where(record)}  stopped on request")

    def _train(self, record: Mapping[str, Any]) -> str:
        left = _shown(record, "time_left_s", ".0f")
        if left.isdecimal():
            minutes, seconds = divmod(int(left), 60)
            left = f"{minutes}:{seconds:02d}"
        return (
            f"{self._where(record)}  loss {_shown(record, 'loss', '.4f')}  LR {_shown(record, 'learning_rate', '.4g')}"
            f"  {_shown(record, 'images_per_s', ',.0f')} images/s  left {left}"
        )

    def _where(self, record: Mapping[str, Any]) -> str:
        epoch = f"epoch {_shown(record, 'epoch', '6.2f')}  " if "epoch" in record else ""
        step = _shown(record, "step", f">{len(self._total_steps)}d")
        return f"{epoch}step {step}/{self._total_steps}"


def _shown(record: Mapping[str, Any], key: str, form: str) -> str:
    """A number of a record for a person: "not finite" for null or NaN, "n/a" if it is missing or no number."""
    try:
        value = record[key]
        return format(value, form) if value is not None and math.isfinite(value) else "not finite"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "n/a"


def _top5(text: str, record: Mapping[str, Any]) -> str:
    """`text` with top-5, or nothing if there is no such number: the model predicts at most 5 classes, or NaN."""
    shown = _shown(record, "top5", ".2%")
    return text.format(shown) if shown.endswith("%") else ""


def _bad(record: Mapping[str, Any]) -> str:
    """How many images an evaluation has left out, if any."""
    return f" without {_shown(record, 'num_bad', ',')} broken ones" if record.get("num_bad") else ""


def _others(record: Mapping[str, Any]) -> str:
    """What is evaluated besides, if anything: the training split, and the user's metrics."""
    metrics = record.get("metrics")
    texts = [f"  {name} {_shown(metrics, name, '.4g')}" for name in metrics] if isinstance(metrics, Mapping) else []
    if "train_top1" in record:
        top1, loss = _shown(record, "train_top1", ".2%"), _shown(record, "train_loss", ".4f")
        texts.append(f"  training split: top-1 {top1}  loss {loss}")
    return "".join(texts)


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    """A warning if the last evaluation is not finite."""
    not_finite = [name for name in ("top1", "loss") if _shown(summary, name, "") == "not finite"]
    if not not_finite:
        return []
    where = ", ".join(not_finite)
    if summary.get("num_nonfinite"):
        where = f"{summary['num_nonfinite']:,} of {_shown(summary, 'num_samples', ',')} samples"
    return [
        f"WARNING: the last evaluation is not finite: {where}. Probable cause: the weights or the running statistics "
        "of a batch norm are not finite"
    ]


def _longer(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """The command that doubles the duration; none if the run ended because it reached its target."""
    if summary.get("target_reached"):
        return []
    duration = Duration.parse(summary["duration"])
    twice = Duration(2 * duration.count, duration.unit)
    return [f"  train longer python -m launcher.train {run.config} duration='{twice}'"]


def profile_lines(run: RunDirectory) -> list[str]:
    """The newest profile, if there is one."""
    traces = sorted(run.profiles.glob("*/rank-0.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return [f"  profile      {traces[-1]} (open it with ui.perfetto.dev; rank-0.txt has a table)"] if traces else []


def _target(detail: Mapping[str, Any]) -> str:
    """The value of an evaluation beside the target, from the detail of an event."""
    name, form = ("top-1", ".2%") if detail.get("metric") == "top1" else ("loss", ".4f")
    return f"{name} {_shown(detail, 'value', form)} (stop_at {_shown(detail, 'target', form)})"


def target_text(summary: Mapping[str, Any]) -> str:
    """Whether a finished run has reached its target, and when; empty without one."""
    reached = summary.get("target_reached")
    if reached is None:
        return ""
    metric, target = next(iter((summary.get("stop_at") or {"top1": None}).items()))
    found = _target({"metric": metric, "target": target, "value": summary.get(metric)})
    when = f"{summary['step']:,} steps, {_shown(summary, 'epoch', '.2f')} epochs"
    return f"{'reached' if reached else 'MISSED'} after {when}: {found}"


def left_out_text(summary: Mapping[str, Any]) -> str:
    """How many broken images a run has left out; empty if there were none."""
    images, listed, samples = (summary.get(key) or 0 for key in ("num_bad_images", "num_known_bad", "num_left_out"))
    in_val = summary.get("num_bad") or 0
    if not (images or samples or in_val):
        return ""
    parts = [f"{count(images, 'broken image')} found (events bad_image in metrics.jsonl)"] if images else []
    if listed or not images:  # a run that goes on has not recorded how many are listed
        parts.append(f"{f'{listed:,}' if listed else 'images'} listed in data.known_bad")
    found = ", ".join(parts)
    return f"{found}; {count(samples, 'sample')} of the training steps, {count(in_val, 'val image')}"


def _other_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the last evaluation has besides: the training split, and the user's metrics."""
    lines = []
    if "train_top1" in summary:
        loss = _shown(summary, "train_loss", ".4f")
        lines = [f"  training     top-1 {_shown(summary, 'train_top1', '.2%')}, loss {loss} on the training images"]
    metrics = summary.get("metrics") or {}
    return lines + [f"  {name:<12} {_shown(metrics, name, '.4g')}" for name in metrics]


def summary_lines(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """The summary of a finished run: its result and its files."""
    return [
        "",
        f"finished  {summary['step']:,} steps, {_shown(summary, 'time_s', '.0f')} s since this start"
        f" ({_shown(summary, 'images_per_s', ',.0f')} images/s while training)",
        *([f"  target       {text}"] if (text := target_text(summary)) else []),
        *_warnings(summary),
        *([f"  left out     {text}"] if (text := left_out_text(summary)) else []),
        f"  top-1        {_shown(summary, 'top1', '.2%')} of {_shown(summary, 'num_samples', ',')} val images"
        f"{_top5(' (top-5 {})', summary)}",
        *_other_lines(summary),
        f"  checkpoint   {run.checkpoints / folder_name(summary['step'])}",
        f"  metrics      {run.metrics}",
        f"  TensorBoard  tensorboard --logdir {run.tensorboard}",
        f"  logs         {run.all_logs}",
        *profile_lines(run),
        *_longer(run, summary),
        f"  your images  python -m launcher.train {run.config} name=mine data.root=FOLDER model.num_classes=N",
    ]

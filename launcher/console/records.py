"""Records of metrics.jsonl as text for a person. Values that are missing or not numbers are shown as n/a."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resnet_dist.progress_line import in_time
from resnet_dist.telemetry.metrics_file import BOTTLENECK_EVENTS


def text_of(record: Mapping[str, Any], total_steps: str, width: int | None = None) -> str | None:
    """A record as a line, or None if it is of no interest to a person.

    `width`: the columns of a terminal: what an evaluation has besides its results is left out if it does not fit.
    """
    kind, event, detail = record.get("kind"), record.get("event"), detail_of(record)
    if kind == "train":
        return "  ".join([_where(record, total_steps), *numbers_of(record), f"left {time_left(record)}"])
    if kind == "eval":
        return fitted([_where(record, total_steps), *_evaluation(record)], width, at_least=3)
    if event in BOTTLENECK_EVENTS or event == "indexing":
        return f"{detail.get('text', 'n/a')}"
    if event == "bad_image" and detail.get("rank"):  # rank 0 has an event "warning" for its own
        return f"WARNING: {detail.get('path', 'n/a')} {detail.get('problem', 'n/a')}: it is left out"
    if event == "warning":
        return f"WARNING: {detail.get('text', 'n/a')}"
    if event in ("target_reached", "target_missed"):
        return f"{_where(record, total_steps)}  {str(event).replace('_', ' ')}: {target_value(detail)}"
    if event == "stopped":
        return f"{_where(record, total_steps)}  stopped on request"
    return None


def detail_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The detail of an event; empty if there is none."""
    detail = record.get("detail")
    return detail if isinstance(detail, Mapping) else {}


def numbers_of(record: Mapping[str, Any]) -> list[str]:
    """Loss, LR and speed of a train record."""
    loss, learning_rate = shown(record, "loss", ".4f"), shown(record, "learning_rate", ".4g")
    return [f"loss {loss}", f"LR {learning_rate}", f"{shown(record, 'images_per_s', ',.0f')} images/s"]


def time_left(record: Mapping[str, Any]) -> str:
    """The time until the end of the training, by a train record."""
    left = shown(record, "time_left_s", ".0f")
    return in_time(int(left)) if left.isdecimal() else left


def shown(record: Mapping[str, Any], key: str, form: str) -> str:
    """A number of a record for a person: "not finite" for null or NaN, "n/a" if it is missing or no number."""
    try:
        value = record[key]
        return format(value, form) if value is not None and math.isfinite(value) else "not finite"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "n/a"


def top5(text: str, record: Mapping[str, Any]) -> str:
    """`text` with top-5, or nothing if there is no such number: the model predicts at most 5 classes, or NaN."""
    value = shown(record, "top5", ".2%")
    return text.format(value) if value.endswith("%") else ""


def target_value(detail: Mapping[str, Any]) -> str:
    """The value of an evaluation beside the target, from the detail of an event."""
    name, form = ("top-1", ".2%") if detail.get("metric") == "top1" else ("loss", ".4f")
    return f"{name} {shown(detail, 'value', form)} (stop_at {shown(detail, 'target', form)})"


def fitted(parts: Sequence[str], width: int | None, at_least: int = 1) -> str:
    """The parts with two spaces between them: as many of the first ones as fit, `at_least` in any case.

    >>> fitted(["step 3/10", "top-1 50.00%", "", "(355 images)"], 30)
    'step 3/10  top-1 50.00%'
    """
    parts = [part for part in parts if part]
    while width is not None and len(parts) > at_least and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def _where(record: Mapping[str, Any], total_steps: str) -> str:
    epoch = f"epoch {shown(record, 'epoch', '6.2f')}  " if "epoch" in record else ""
    return f"{epoch}step {shown(record, 'step', f'>{len(total_steps)}d')}/{total_steps}"


def _evaluation(record: Mapping[str, Any]) -> Iterator[str]:
    """The parts of the line of an evaluation, the most important ones first."""
    average = ", average of the weights" if record.get("weights") == "ema" else ""
    beside = " beside training" if record.get("beside") else ""  # comes after the lines of later steps
    yield f"evaluated{beside}{average}: top-1 {shown(record, 'top1', '.2%')}"
    yield f"loss {shown(record, 'loss', '.4f')}"
    yield top5("top-5 {}", record)
    metrics = record.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    for name in metrics:
        yield f"{name} {shown(metrics, name, '.4g')}"
    if "train_top1" in record:
        loss = shown(record, "train_loss", ".4f")
        yield f"training split: top-1 {shown(record, 'train_top1', '.2%')}  loss {loss}"
    bad = f" without {shown(record, 'num_bad', ',')} broken ones" if record.get("num_bad") else ""
    yield f"({shown(record, 'num_samples', ',')} images{bad} in {shown(record, 'time_s', '.1f')} s)"

"""What came out of a run: its accuracy with all that belongs to the number, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.inference import accuracy
from launcher.inference.accuracy import Z_95, wilson_interval
from launcher.report.run_record import RunRecord, number
from resnet_dist.telemetry.json_lines import Record


@dataclass(frozen=True)
class Accuracy:
    """A top-1 accuracy, of `num_samples` images that are a sample of all images of their kind."""

    top1: float
    num_samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson_interval(self.top1, self.num_samples)

    def differs_from(self, other: Accuracy) -> bool:
        """Whether the difference is larger than the sampling of the images explains: z test of two proportions, 95 %.

        It takes the images for different ones. For the same images it is cautious: their difficulty is common to both.

        >>> Accuracy(0.98, 355).differs_from(Accuracy(0.97, 355)), Accuracy(0.98, 355).differs_from(Accuracy(0.9, 355))
        (False, True)
        """
        n, m = self.num_samples, other.num_samples
        pooled = (self.top1 * n + other.top1 * m) / (n + m)
        return abs(self.top1 - other.top1) > Z_95 * math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run. Numbers that are not recorded or not finite are None."""

    step: int
    epoch: float | None
    accuracy: Accuracy | None
    loss: float | None
    top5: float | None
    num_samples: int | None
    weights: str | None  # "model", or "ema"
    num_bad: int
    num_nonfinite: int


@dataclass(frozen=True)
class Result:
    """What a run has reached so far."""

    last: Evaluation | None  # None: not evaluated yet
    best: Evaluation | None  # with the highest top-1, the earliest of equals; None without any top-1
    label: str  # what the accuracies are measured on and with

    @property
    def accuracy(self) -> Accuracy | None:
        """That of the last evaluation."""
        return None if self.last is None else self.last.accuracy


def result(run: RunRecord) -> Result:
    """The last and the best evaluation; of FINISHED if metrics.jsonl has none."""
    found = [evaluation(record) for record in run.of_kind("eval")]
    if not found and "top1" in run.summary:
        found = [evaluation({"step": 0, **run.summary})]
    known = [one for one in found if one.accuracy is not None]
    best = max(known, key=lambda one: one.accuracy.top1 if one.accuracy else 0.0, default=None)
    last = found[-1] if found else None
    return Result(last, best, "" if last is None else label(last, run.keys))


def evaluation(record: Mapping[str, Any] | Record) -> Evaluation:
    """A record of kind "eval", or the content of FINISHED."""
    top1, num_samples = number(record, "top1"), record.get("num_samples")
    valid = top1 is not None and 0 <= top1 <= 1 and (num_samples or 0) > 0
    return Evaluation(
        step=record["step"],
        epoch=number(record, "epoch"),
        accuracy=Accuracy(top1, num_samples) if valid and top1 is not None and num_samples else None,
        loss=number(record, "loss"),
        top5=number(record, "top5"),
        num_samples=num_samples,
        weights=record.get("weights"),
        num_bad=record.get("num_bad") or 0,
        num_nonfinite=record.get("num_nonfinite") or 0,
    )


def label(found: Evaluation, keys: Mapping[str, Any]) -> str:
    """What an accuracy is measured on and with: see `label_of`. `keys`: the config by dotted key."""
    steps = keys.get("evaluate.precise_batch_norm")
    return accuracy.label_of(
        num_samples=found.num_samples,
        resolution=keys.get("evaluate.resolution") or keys.get("data.resolution"),
        crop=keys.get("data.evaluation_crop"),
        weights=found.weights,
        precision=keys.get("precision"),
        batch_norm_steps=steps if isinstance(steps, int) else 0,
        num_bad=found.num_bad,
    )


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as text.

    >>> percent(0.9887), percent(None)
    ('98.87 %', 'n/a')
    """
    return "n/a" if fraction is None else f"{100 * fraction:.{digits}f} %"


def interval_text(found: Accuracy) -> str:
    """The interval of an accuracy as text.

    >>> interval_text(Accuracy(0.98, 100))
    '93.0 to 99.4 %'
    """
    return accuracy.interval_text(found.interval)

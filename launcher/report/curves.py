"""The curves of a run, down-sampled to a number of points that a page can hold.

A point of a down-sampled curve stands for a range of records: their mean, and their smallest and largest value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.report.goodput import data_wait_fraction, steps_covered
from launcher.report.run_record import RunRecord, number
from resnet_dist.telemetry.json_lines import Record

DIGITS = 6  # significant digits of a number on a page


@dataclass(frozen=True)
class Points:
    """A quantity at x positions. Values that are missing or not finite are None."""

    mean: Sequence[float | None]
    low: Sequence[float | None]  # the same object as `mean` if each point is one record
    high: Sequence[float | None]

    def known(self) -> list[tuple[int, float]]:
        """The positions and values that exist."""
        return [(position, value) for position, value in enumerate(self.mean) if value is not None]


@dataclass(frozen=True)
class Curves:
    """The quantities of the records of one kind, at common positions: the last record of each range."""

    step: Sequence[int]
    epoch: Sequence[float] | None  # None: not recorded
    time_s: Sequence[float]  # of steps and evaluations until then, without starts, saves and restarts
    points: Mapping[str, Points]  # by quantity; those without any value are left out
    num_records: int

    @property
    def records_per_point(self) -> int:
        """The largest number of records that a point stands for."""
        return math.ceil(self.num_records / max(len(self.step), 1))


@dataclass(frozen=True)
class Quantity:
    """A number of a record, and how to read it."""

    kind: str  # "train" or "eval"
    value: Callable[[Record], float | None]


def _named(kind: str, key: str) -> Quantity:
    return Quantity(kind, lambda record: number(record, key))


QUANTITIES: Mapping[str, Quantity] = {
    "train_loss": _named("train", "loss"),
    "train_top1": _named("train", "top1"),
    "learning_rate": _named("train", "learning_rate"),
    "images_per_s": _named("train", "images_per_s"),
    "gradient_norm": _named("train", "gradient_norm"),
    "trust_ratio_min": _named("train", "trust_ratio_min"),
    "trust_ratio_median": _named("train", "trust_ratio_median"),
    "trust_ratio_max": _named("train", "trust_ratio_max"),
    "data_wait": Quantity("train", lambda record: data_wait_fraction(record) if "step_time_s" in record else None),
    "eval_loss": _named("eval", "loss"),
    "eval_top1": _named("eval", "top1"),
    "num_samples": _named("eval", "num_samples"),
    "train_split_loss": _named("eval", "train_loss"),
    "train_split_top1": _named("eval", "train_top1"),
}


def curves(run: RunRecord, kind: str, most_points: int) -> Curves:
    """The quantities of the train or eval records of a run, in at most `most_points` points (from 1)."""
    times = _times(run.records)
    records = run.of_kind(kind)
    ranges = list(_ranges(len(records), most_points))
    ends = [records[end - 1] for _, end in ranges]
    epochs = [number(record, "epoch") for record in ends]
    points = {}
    for name, quantity in QUANTITIES.items():
        if quantity.kind == kind:
            values = [quantity.value(record) for record in records]
            if any(value is not None for value in values):
                points[name] = _points(values, ranges)
    return Curves(
        step=[record["step"] for record in ends],
        epoch=None if None in epochs else [rounded(epoch) for epoch in epochs if epoch is not None],
        time_s=[rounded(times[id(record)]) for record in ends],
        points=points,
        num_records=len(records),
    )


def rounded(value: float) -> float:
    """A number with the digits that a page needs.

    >>> rounded(0.123456789), rounded(1234567.0)
    (0.123457, 1234570.0)
    """
    return float(f"{value:.{DIGITS}g}")


def _ranges(count: int, most: int) -> Iterator[tuple[int, int]]:
    """`count` positions in at most `most` ranges of nearly the same length, as (start, end).

    >>> list(_ranges(5, 2)), list(_ranges(2, 5))
    ([(0, 2), (2, 5)], [(0, 1), (1, 2)])
    """
    number_of = min(count, most)
    yield from itertools.pairwise(count * position // number_of for position in range(number_of + 1) if number_of)


def _points(values: Sequence[float | None], ranges: Sequence[tuple[int, int]]) -> Points:
    if len(values) == len(ranges):
        whole = [None if value is None else rounded(value) for value in values]
        return Points(whole, whole, whole)
    mean: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for start, end in ranges:
        known = [value for value in values[start:end] if value is not None]
        mean.append(rounded(math.fsum(known) / len(known)) if known else None)
        low.append(rounded(min(known)) if known else None)
        high.append(rounded(max(known)) if known else None)
    return Points(mean, low, high)


def _times(records: Sequence[Record]) -> dict[int, float]:
    """The time of steps and evaluations until the end of each record, by its identity."""
    times: dict[int, float] = {}
    total = 0.0
    for record, covered in steps_covered(records):
        total += (number(record, "step_time_s") or 0.0) * covered
        is_inline = record["kind"] == "eval" and not record.get("beside")
        total += (number(record, "time_s") or 0.0) if is_inline else 0.0
        times[id(record)] = total
    return times

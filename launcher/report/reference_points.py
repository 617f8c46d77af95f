"""A run's epochs to 75.9 % top-1 against MLPerf's reference convergence points (RCPs).

MLPerf's rule (mlperf_logging/rcp_checker/rcp_checker.py, version 4.1.68, data of training 4.0.0, with its pruned
points) takes the mean of a submission's five runs, without the fastest and the slowest, and rejects one that is smaller
than the reference mean by more than a one-sided t test at 5 % explains. So a recipe may converge slower than the
reference, and not faster. Here the rule's bound is held against one run, which varies more than a mean.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from launcher.planning.student_t import t_quantile
from launcher.report.result import evaluation
from launcher.report.run_record import RunRecord
from resnet_dist.recipe.published import MODEL, NUM_CLASSES, NUM_SAMPLES, TARGET_TOP1, origins

SOURCE = (
    "MLPerf Training v4.0, reference convergence points for ResNet; the rule is that of mlperf_logging's rcp_checker"
)
_SUBMITTED = 5 - 2  # runs of a submission, without the fastest and the slowest
_INTERPOLATED = 10  # runs that an interpolated point stands for
_LEVEL = 0.95
_NUM_VAL = 50_000  # images of ImageNet's val split


@dataclass(frozen=True)
class Point:
    """The epochs to the target of the reference runs with one batch."""

    batch: int
    mean: float  # without the smallest and the largest
    deviation: float  # of all runs, divided by n
    num: int  # runs of the mean
    epochs: tuple[int, ...] = ()  # of each run, ascending; empty for an interpolated point

    @property
    def least(self) -> float:
        """The smallest mean of a submission that the rule accepts."""
        spread = self.deviation * math.sqrt(1 / self.num + 1 / _SUBMITTED)
        return self.mean - t_quantile(_LEVEL, self.num + _SUBMITTED - 2) * spread


@dataclass(frozen=True)
class Check:
    """What the reference points say about a run."""

    batch: int
    epochs: float | None  # at the first evaluation that reached the target; None: none did
    every: float | None  # epochs between that evaluation and the one before
    point: Point | None  # None: there is none for a batch that large
    what: str  # the point, for a person
    same_batch: tuple[int, ...]  # epochs of each reference run with this batch, ascending; empty if there are none

    @property
    def verdict(self) -> str:
        """One sentence: whether the run's convergence is within what MLPerf accepts."""
        target = f"{100 * TARGET_TOP1:.1f} % top-1"
        if self.point is None:
            return f"no reference point for a batch of {self.batch:,}: {self.what}"
        if self.epochs is None:
            return f"has not reached {target}; the reference runs did after {self.point.mean:.1f} epochs"
        found = f"{target} after {self.epochs:.2f} epochs"
        if self.epochs < self.point.least:
            return (
                f"{found}: FASTER than MLPerf accepts (a mean of at least {self.point.least:.2f}). Check that"
                " evaluation uses all val images, and that none of them is trained on"
            )
        if self.same_batch and self.epochs > self.same_batch[-1]:
            return f"{found}: accepted, and slower than all reference runs with this batch ({self._range})"
        runs = f"; the reference runs with this batch took {self._range}" if self.same_batch else ""
        return f"{found}: within what MLPerf accepts (a mean of at least {self.point.least:.2f}){runs}"

    @property
    def _range(self) -> str:
        return f"{self.same_batch[0]} to {self.same_batch[-1]} epochs"

    def described(self) -> Mapping[str, object]:
        """For JSON."""
        least = None if self.point is None else self.point.least
        return {**asdict(self), "least_epochs": least, "verdict": self.verdict, "source": SOURCE}


def check(run: RunRecord) -> Check | None:
    """The check of a run; None unless it trains ResNet-50 on all of ImageNet-1k and has evaluated that."""
    keys = run.keys
    batch, num_samples = keys.get("batch.size"), run.started.get("num_samples", keys.get("data.num_samples"))
    trains_it = keys.get("model.name") == MODEL and keys.get("model.num_classes") == NUM_CLASSES
    evaluations = [evaluation(record) for record in run.of_kind("eval")]
    known = [one for one in evaluations if one.accuracy is not None and one.epoch is not None]
    if not trains_it or num_samples != NUM_SAMPLES or not isinstance(batch, int) or not known:
        return None
    if known[-1].num_samples != _NUM_VAL:
        return None
    point, what = point_of(batch, pruned(points()))
    epochs = every = None
    for before, one in itertools.pairwise([None, *known]):
        assert one is not None
        assert one.accuracy is not None
        if one.accuracy.top1 >= TARGET_TOP1 and one.epoch is not None:
            epochs = one.epoch
            every = None if before is None or before.epoch is None else one.epoch - before.epoch
            break
    same_batch = next((one.epochs for one in points() if one.batch == batch), ())
    return Check(batch, epochs, every, point, what, same_batch)


def points() -> list[Point]:
    """The reference points, by batch."""
    runs = [(run.batch, tuple(sorted(run.epochs_of_each))) for origin in origins() for run in origin.runs]
    return [
        Point(batch, statistics.fmean(epochs[1:-1]), statistics.pstdev(epochs), len(epochs) - 2, epochs)
        for batch, epochs in sorted(runs)
        if epochs
    ]


def pruned(found: Sequence[Point]) -> list[Point]:
    """The points without those that converge slower than their neighbours let expect, as the rule leaves them out."""
    fastest = min(found, key=lambda point: point.mean)
    kept = [point for point in found if point.batch >= fastest.batch]
    position = 1
    while position < len(kept) - 1:
        between = _between(kept[position].batch, kept[position - 1], kept[position + 1])
        if kept[position].mean > between.mean:
            del kept[position]
        else:
            position += 1
    return kept


def point_of(batch: int, found: Sequence[Point]) -> tuple[Point | None, str]:
    """The point for a batch, and what it is; None for a batch above all points."""
    for point in found:
        if point.batch == batch:
            return point, f"the reference runs with a batch of {batch:,}"
    if batch < found[0].batch:
        return found[0], f"the smallest batch that has reference runs, {found[0].batch:,}"
    if batch > found[-1].batch:
        return None, f"the largest one is for {found[-1].batch:,}"
    below = max((point for point in found if point.batch < batch), key=lambda point: point.batch)
    above = min((point for point in found if point.batch > batch), key=lambda point: point.batch)
    what = f"interpolated between the reference runs with {below.batch:,} and {above.batch:,}"
    return _between(batch, below, above), what


def _between(batch: int, below: Point, above: Point) -> Point:
    part = (batch - below.batch) / (above.batch - below.batch)
    mean, deviation = (
        low + part * (high - low) for low, high in ((below.mean, above.mean), (below.deviation, above.deviation))
    )
    return Point(batch, mean, deviation, _INTERPOLATED)

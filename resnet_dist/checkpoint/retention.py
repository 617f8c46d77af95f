"""Which checkpoints stay: the newest few, the best few, and some for ever."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint import folders, format
from resnet_dist.checkpoint.disk import reason
from resnet_dist.errors import CheckpointError
from resnet_dist.recipe.durations import Every

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may stay or go."""

    step: int
    is_complete: bool
    metric: float | None = None  # None where it was not evaluated


@dataclass(frozen=True)
class Retention:
    """The newest `keep` complete checkpoints stay, the best `keep_best` by `metric`, and one of each `keep_every`.

    The one of a period is the first complete one after its beginning, so there is one whether or not checkpoints are
    written at just these steps, and whether or not that one could be written.
    A metric whose name ends in "loss" or "error" is better when it is lower, any other when it is higher; of equals the
    later checkpoint is better. A checkpoint without the metric is never among the best, nor is one where it is not
    finite.

    >>> checkpoints = [Candidate(step, True, top1) for step, top1 in ((10, 0.3), (20, 0.7), (30, 0.6), (40, 0.5))]
    >>> Retention(keep=1, keep_best=1).doomed(checkpoints)
    [30, 10]
    """

    keep: int = 3  # at least 1
    keep_best: int = 0
    metric: str = "top1"
    keep_every: Every | None = None  # for ever; None: none

    @property
    def lower_is_better(self) -> bool:
        """Whether the best checkpoint is the one with the lowest metric."""
        return self.metric.endswith(("loss", "error"))

    def doomed(self, candidates: Iterable[Candidate]) -> list[int]:
        """The steps to delete, newest first.

        One that is not complete counts for nothing; it stays until `keep` complete ones are newer. So nothing is ever
        deleted before there is something better in its place.
        """
        assert self.keep >= 1, self.keep  # the config's rules see to it
        newest_first = sorted(candidates, key=lambda candidate: -candidate.step)
        complete = [candidate for candidate in newest_first if candidate.is_complete]
        if len(complete) < self.keep:
            return []
        sign = -1 if self.lower_is_better else 1
        ranked = sorted(
            (-sign * c.metric, -c.step) for c in complete if c.metric is not None and math.isfinite(c.metric)
        )
        spared = {-negated for _, negated in ranked[: self.keep_best]}
        spared |= self._for_ever(candidate.step for candidate in reversed(complete))
        cut = complete[self.keep - 1].step
        return [candidate.step for candidate in newest_first if candidate.step < cut and candidate.step not in spared]

    def _for_ever(self, steps: Iterable[int]) -> set[int]:
        """Of `steps`, in ascending order, the first of each period but the one that begins with the run."""
        if self.keep_every is None:
            return set()
        first: dict[int, int] = {}
        for step in steps:
            first.setdefault(step * self.keep_every.batch_size // self.keep_every.period, step)
        return {step for period, step in first.items() if period > 0}


def metric_of(state: Any, name: str) -> float | None:
    """The metric in a checkpoint's state.json, as it was read; None where there is none that can be compared."""
    metrics = state.get("metrics") if isinstance(state, dict) else None
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def delete_old(folder: Path, step: int, retention: Retention, spare: Collection[int] = ()) -> None:
    """Delete those of the checkpoints in `folder` up to `step`, which was just written, that need not stay.

    Later ones (of an attempt before this one, which went on from an earlier step) are left alone: the run will come to
    their steps again. The steps of `spare` stay for now. A deletion that fails costs space, not the run, which has its
    checkpoint: it is logged.
    """
    try:
        present = {own: path for path in format.step_folders(folder) if (own := format.step_of(path.name)) is not None}
        candidates = [_candidate(path, own, step, retention) for own, path in present.items() if own <= step]
        for own in retention.doomed(candidates):
            if own not in spare:
                folders.delete(present[own], own)
    except OSError as error:
        log.warning("%s: an old checkpoint could not be deleted: %s", error.filename or folder, reason(error))


def _candidate(checkpoint: Path, step: int, just_written: int, retention: Retention) -> Candidate:
    try:
        if step != just_written:
            format.check_sizes(checkpoint)
        state = format.read_json(checkpoint / format.STATE) if retention.keep_best else None
    except CheckpointError as error:
        log.warning("%s: this checkpoint does not count as one of those to keep", error)
        return Candidate(step, is_complete=False)
    return Candidate(step, is_complete=True, metric=metric_of(state, retention.metric))

"""The retention policy: which checkpoints stay (the newest, the best, one per period), and deleting the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_dist.checkpoint import folders, format
from resnet_dist.checkpoint.disk import reason
from resnet_dist.errors import CheckpointError
from resnet_dist.recipe.durations import Duration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may be deleted."""

    step: int
    is_complete: bool
    metric: float | None = None  # None if it was not evaluated


@dataclass(frozen=True)
class Retention:
    """Keeps the newest `keep` complete checkpoints, the `keep_best` best by `metric`, and one per `keep_every`.

    The checkpoint that is kept of a period is the first complete one after the period's start, whether or not there is
    a checkpoint at that step. A metric whose name ends in "loss" or "error" is better when lower, any other when
    higher; of equals the later checkpoint is better. Checkpoints without a finite metric are not among the best.

    >>> checkpoints = [Candidate(step, True, top1) for step, top1 in ((10, 0.3), (20, 0.7), (30, 0.6), (40, 0.5))]
    >>> Retention(keep=1, keep_best=1).to_delete(checkpoints)
    [30, 10]
    """

    keep: int = 3  # at least 1
    keep_best: int = 0
    metric: str = "top1"
    keep_every: Duration | None = None  # None: no periodic ones

    def in_steps(self, *, batch_size: int, num_samples: int) -> Retention:
        """Return this policy with `keep_every` in steps, as `to_delete` needs it. `num_samples`: of the data set."""
        if self.keep_every is None:
            return self
        samples = self.keep_every.samples(batch_size=batch_size, num_samples=num_samples)
        return replace(self, keep_every=Duration(samples / batch_size, "steps"))

    def to_delete(self, candidates: Iterable[Candidate]) -> list[int]:
        """Return the steps of the checkpoints to delete, newest first.

        An incomplete checkpoint does not count; it stays until `keep` complete ones are newer. So nothing is deleted
        before a better checkpoint exists.
        """
        assert self.keep >= 1, self.keep  # checked in the config
        newest_first = sorted(candidates, key=lambda candidate: -candidate.step)
        complete = [candidate for candidate in newest_first if candidate.is_complete]
        if len(complete) < self.keep:
            return []
        sign = 1 if self.metric.endswith(("loss", "error")) else -1
        ranked = sorted(
            (sign * c.metric, -c.step) for c in complete if c.metric is not None and math.isfinite(c.metric)
        )
        kept = {-negated for _, negated in ranked[: self.keep_best]}
        kept |= self._periodic(candidate.step for candidate in reversed(complete))
        oldest_of_newest = complete[self.keep - 1].step
        return [c.step for c in newest_first if c.step < oldest_of_newest and c.step not in kept]

    def _periodic(self, steps: Iterable[int]) -> set[int]:
        """Return the first of `steps`, which ascend, in each period except the one that begins with the run."""
        if self.keep_every is None:
            return set()
        assert self.keep_every.unit == "steps", self.keep_every
        first: dict[int, int] = {}
        for step in steps:
            first.setdefault(step // self.keep_every.count, step)
        return {step for period, step in first.items() if period > 0}


def metric_of(state: object, name: str) -> float | None:
    """Return the metric in a checkpoint's parsed state.json; None if it is missing or not finite."""
    metrics = state.get("metrics") if isinstance(state, dict) else None
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def delete_old(folder: Path, step: int, retention: Retention, in_use: Collection[int] = ()) -> None:
    """Delete the checkpoints in `folder` that `retention` does not keep. `step` is the one just written.

    Later checkpoints, of an earlier attempt, stay: the run will reach their steps again. The steps of `in_use` stay for
    now. A failed deletion is logged: it costs space, but the run has its checkpoint.
    """
    try:
        present = {own: path for path in format.step_folders(folder) if (own := format.step_of(path.name)) is not None}
        candidates = [_candidate(path, own, step, retention) for own, path in present.items() if own <= step]
        for own in retention.to_delete(candidates):
            if own not in in_use:
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

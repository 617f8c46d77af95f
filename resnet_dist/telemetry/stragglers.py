"""Detection of stragglers: workers that slow down all others in every step."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 20  # steps over which medians are taken, so that one slow read does not count
EVERY = 5  # steps between two checks: a straggler is reported within WINDOW + EVERY steps
FACTOR = 2.0  # times the median of the others
LEAST_EXCESS_S = 0.005  # assumption: a smaller loss per step is not worth fixing


@dataclass(frozen=True)
class Straggler:
    """A worker whose local step time is much longer than that of the others."""

    rank: int
    local_step_time_s: float  # its median over the window
    others_s: float  # the median of the others' medians


class Stragglers:
    """Takes the local step times of every step, and reports each straggler once until it has recovered."""

    def __init__(self) -> None:
        self._steps: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._reported: set[int] = set()
        self._num_added = 0

    def add(self, local_step_times_s: Sequence[float]) -> list[Straggler]:
        """Add a step's times by rank (0.0: unknown); return the new stragglers."""
        if len(local_step_times_s) < 2 or not all(local_step_times_s):
            return []
        self._steps.append(local_step_times_s)
        self._num_added += 1
        if len(self._steps) < WINDOW or self._num_added % EVERY:
            return []
        medians = [statistics.median(times) for times in zip(*self._steps, strict=True)]
        suspects = [rank for rank, median in enumerate(medians) if median >= FACTOR * min(medians)]
        found = [straggler for rank in suspects if (straggler := _straggler(rank, medians))]
        new = [straggler for straggler in found if straggler.rank not in self._reported]
        self._reported = {straggler.rank for straggler in found}
        return new


def _straggler(rank: int, medians: list[float]) -> Straggler | None:
    others_s = statistics.median(medians[:rank] + medians[rank + 1 :])
    slow = medians[rank] >= FACTOR * others_s and medians[rank] - others_s >= LEAST_EXCESS_S
    return Straggler(rank, medians[rank], others_s) if slow else None

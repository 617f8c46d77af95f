"""Which worker holds up the others: the same every step, so it is worth a name."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 20  # steps whose median counts: a worker that reads a slow file once is none
EVERY = 5  # steps between two looks: a straggler is named within WINDOW + EVERY steps
FACTOR = 2.0  # times the median of the others
LEAST_EXCESS_S = 0.005  # assumption: what a step loses to less than this, nobody will mend


@dataclass(frozen=True)
class Straggler:
    """A worker that needs much longer for its own part of a step than the others."""

    rank: int
    own_s: float  # its median over the window
    others_s: float  # the median of the others' medians

    @property
    def times(self) -> float:
        """How many times longer."""
        return self.own_s / self.others_s


class Stragglers:
    """Fed with every step's own seconds of all ranks; names a straggler once, until it has caught up."""

    def __init__(self) -> None:
        self._steps: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._named: set[int] = set()
        self._num_added = 0

    def add(self, own_s: Sequence[float]) -> list[Straggler]:
        """Take a step's times, one a rank (0.0: not known); return the stragglers that are new."""
        if len(own_s) < 2 or not all(own_s):
            return []
        self._steps.append(own_s)
        self._num_added += 1
        if len(self._steps) < WINDOW or self._num_added % EVERY:
            return []
        medians = [statistics.median(times) for times in zip(*self._steps, strict=True)]
        suspects = [rank for rank, own in enumerate(medians) if own >= FACTOR * min(medians)]
        found = [straggler for rank in suspects if (straggler := _judged(rank, medians))]
        new = [straggler for straggler in found if straggler.rank not in self._named]
        self._named = {straggler.rank for straggler in found}
        return new


def _judged(rank: int, medians: list[float]) -> Straggler | None:
    others_s = statistics.median(medians[:rank] + medians[rank + 1 :])
    slow = medians[rank] >= FACTOR * others_s and medians[rank] - others_s >= LEAST_EXCESS_S
    return Straggler(rank, medians[rank], others_s) if slow else None

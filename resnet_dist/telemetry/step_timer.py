"""Seconds a step takes and what they go into, by step until its lap is written."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from resnet_dist.telemetry.bottleneck import StepTimes

Item = TypeVar("Item")
Result = TypeVar("Result")


class StepClock:
    """Times of the steps since the last lap.

    A step's totals are recorded when the next step has run already, so times are kept by step until then.
    """

    def __init__(self) -> None:
        self._step = 0
        self._busy_s: defaultdict[int, float] = defaultdict(float)
        self._input_s: defaultdict[int, float] = defaultdict(float)
        self._copies_s: defaultdict[int, float] = defaultdict(float)
        self._own_s: dict[int, Sequence[float]] = {}

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """The time inside belongs to `step`."""
        self._step = step
        started = time.perf_counter()
        yield
        self._busy_s[step] += time.perf_counter() - started

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass on `batches`, and count what each one takes to come."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._input_s[self._step] += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def copying(self, copy: Callable[[Item], Result], batch: Item) -> Result:
        """What `copy` makes of `batch`, and count what it takes."""
        started = time.perf_counter()
        result = copy(batch)
        self._copies_s[self._step] += time.perf_counter() - started
        return result

    def add_own(self, step: int, own_s: Sequence[float]) -> None:
        """What `step` took each worker alone, by rank."""
        self._own_s[step] = own_s

    def lap(self, step: int) -> StepTimes:
        """The means over the steps up to `step` that no lap has taken yet; there must be one."""
        steps = [number for number in self._busy_s if number <= step]
        own = [self._own_s.pop(number, ()) for number in steps]
        known = [times for times in own if times and all(times)]
        by_rank = tuple(sum(times) / len(known) for times in zip(*known, strict=True)) if known else ()

        def mean(seconds: defaultdict[int, float]) -> float:
            return sum(seconds.pop(number, 0.0) for number in steps) / len(steps)

        return StepTimes(len(steps), mean(self._busy_s), by_rank, mean(self._input_s), mean(self._copies_s))

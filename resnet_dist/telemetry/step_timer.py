"""Wall-clock times of the steps, averaged over logging windows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from resnet_dist.telemetry.bottleneck import StepTimes

Item = TypeVar("Item")
Result = TypeVar("Result")


class StepTimer:
    """Times of the steps since the end of the last logging window.

    The totals of a step are recorded after the next step has run, so times are kept by step until then.
    """

    def __init__(self) -> None:
        self._step = 0
        self._step_s: defaultdict[int, float] = defaultdict(float)
        self._input_s: defaultdict[int, float] = defaultdict(float)
        self._copies_s: defaultdict[int, float] = defaultdict(float)
        self._local_s: dict[int, Sequence[float]] = {}  # by rank

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Count the time inside the context for `step`."""
        self._step = step
        started = time.perf_counter()
        yield
        self._step_s[step] += time.perf_counter() - started

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield `batches` and count the time that each one takes to arrive."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._input_s[self._step] += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def copying(self, copy: Callable[[Item], Result], batch: Item) -> Result:
        """Return `copy(batch)` and count the time that it takes."""
        started = time.perf_counter()
        result = copy(batch)
        self._copies_s[self._step] += time.perf_counter() - started
        return result

    def add_local(self, step: int, local_step_times_s: Sequence[float]) -> None:
        """Record the local times of `step`, by rank."""
        self._local_s[step] = local_step_times_s

    def end_window(self, step: int) -> StepTimes:
        """The means over the window that ends with `step`: all steps since the last window, at least one."""
        steps = [number for number in self._step_s if number <= step]
        local = [self._local_s.pop(number, ()) for number in steps]
        known = [times for times in local if times and all(times)]
        by_rank = tuple(sum(times) / len(known) for times in zip(*known, strict=True))

        def mean(seconds: defaultdict[int, float]) -> float:
            return sum(seconds.pop(number, 0.0) for number in steps) / len(steps)

        return StepTimes(len(steps), mean(self._step_s), by_rank, mean(self._input_s), mean(self._copies_s), step)

"""The predicted wall time of a run, with an 80 % interval and the evidence that it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Evidence = Literal["own run", "calibration", "published", "assumption"]  # strongest first

COVERAGE = 0.8  # of the interval


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with the bounds between which a value lies in 80 % of all cases.

    The sum of two intervals adds their bounds: what makes one part of a run slow makes its other parts slow, too.

    >>> Interval(low=1, median=2, high=4) + Interval.exactly(1)
    Interval(low=2, median=3, high=5)
    """

    low: float
    median: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.median <= self.high < math.inf:
            raise ValueError(f"not an interval of numbers from 0 up: {self.low}, {self.median}, {self.high}")

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """Three times the same value."""
        return cls(low=value, median=value, high=value)

    def scaled(self, factor: float) -> Interval:
        """All three times `factor`."""
        return Interval(low=self.low * factor, median=self.median * factor, high=self.high * factor)

    def inverse(self, numerator: float) -> Interval:
        """`numerator` / the value, such as images/s from the time of a step; the value is above 0."""
        return Interval(low=numerator / self.high, median=numerator / self.median, high=numerator / self.low)

    def contains(self, value: float) -> bool:
        """Whether `value` lies within the bounds."""
        return self.low <= value <= self.high

    @property
    def relative_width(self) -> float:
        """The distance of the bounds divided by the median; 0 for a median of 0."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def __add__(self, other: Interval) -> Interval:
        return Interval(low=self.low + other.low, median=self.median + other.median, high=self.high + other.high)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take, without the time it waits in a queue. Seconds are those of the command."""

    wall_s: Interval  # from the command to its end, over all attempts
    start_s: Interval  # of `wall_s`: before the first step and after the last one
    training_s: Interval
    evaluation_s: Interval
    saving_s: Interval
    failures_s: Interval  # of `wall_s`: work that failures make the run repeat, and the restarts
    images_per_s: Interval  # of the whole run while training
    workers: int
    gpus: int  # 0 on CPUs
    evidence: Evidence
    source: str  # for a person: which run, how long the calibration was, which publication
    notes: tuple[str, ...] = ()  # for a person: what is assumed, scaled or unknown, one sentence each

    @property
    def gpu_hours(self) -> Interval:
        """GPUs × hours; all zero on CPUs."""
        return self.wall_s.scaled(self.gpus / 3600)

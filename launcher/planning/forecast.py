"""The predicted wall time of a run, with an 80 % interval and the evidence that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Evidence = Literal["own run", "calibration", "published", "assumption"]  # strongest first

COVERAGE = 0.8  # of the interval


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with the bounds between which a value lies in 80 % of all cases."""

    low: float
    median: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """All three times `factor`."""
        return Interval(low=self.low * factor, median=self.median * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take, without the time it waits in a queue. Seconds are those of the command."""

    wall_s: Interval  # from the command to its end, over all attempts
    start_s: Interval  # of `wall_s`: before the first step
    training_s: Interval
    evaluation_s: Interval
    saving_s: Interval
    images_per_s: Interval  # of the whole run while training
    workers: int
    gpus: int  # 0 on CPUs
    evidence: Evidence
    source: str  # for a person: which run, how long the calibration was, which publication

    @property
    def gpu_hours(self) -> Interval:
        """GPUs × hours; all zero on CPUs."""
        return self.wall_s.scaled(self.gpus / 3600)

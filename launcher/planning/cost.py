"""What a forecast costs, and how many jobs it needs within the time limit of a scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import RunConfig
from launcher.places.spec import seconds_of
from launcher.planning.failures import Failures, expected_failures
from launcher.planning.forecast import Forecast, Interval
from launcher.planning.scaling_model import Assumptions
from launcher.planning.work import work_of

_NOTICE_S = 120.0  # assumption without preemption.notice_s: a job stops its run this long before its end
ENDLESS = 1_000_000  # jobs: a walltime that is shorter than a start and the notice never ends the run


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The jobs that a run needs, one after the other. A job saves before its time limit, and the next one resumes."""

    walltime_s: float
    number: Interval  # whole numbers
    allowed: int  # cluster.max_requeues: requeues on Kubernetes; on SLURM those after a fault or without progress

    @property
    def enough(self) -> bool:
        """Whether one job is enough, with the upper bound of the time."""
        return self.number.high <= 1


def cost(forecast: Forecast, price_per_gpu_hour: float) -> Interval:
    """GPU hours times their price, which is above 0, in its currency."""
    return forecast.gpu_hours.scaled(price_per_gpu_hour)


def jobs(config: RunConfig, forecast: Forecast) -> Jobs | None:
    """The jobs within `cluster.walltime`; None if it is not set.

    Each job but the last loses its start and the notice before its end.
    """
    walltime_s = seconds_of(config.cluster.walltime)
    if walltime_s is None:
        return None
    notice_s = _NOTICE_S if config.preemption.notice_s is None else config.preemption.notice_s

    def needed(wall_s: float, start_s: float) -> int:
        if wall_s <= walltime_s:
            return 1
        useful_s = walltime_s - start_s - notice_s
        if useful_s <= 0:
            return ENDLESS
        return min(math.ceil((wall_s - start_s) / useful_s), ENDLESS)

    pairs = zip(_bounds(forecast.wall_s), _bounds(forecast.start_s), strict=True)
    low, median, high = (needed(*pair) for pair in pairs)
    number = Interval(low=low, median=median, high=high)
    return Jobs(walltime_s=walltime_s, number=number, allowed=config.cluster.max_requeues)


def failures(config: RunConfig, forecast: Forecast, assumed: Assumptions, num_samples: int) -> Failures:
    """The failures of nodes that a run with this forecast and so many training images must expect."""
    parts = (forecast.start_s, forecast.training_s, forecast.evaluation_s, forecast.saving_s)
    return expected_failures(config, sum(parts, Interval.exactly(0.0)), work_of(config, num_samples), assumed)


def _bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.median, interval.high

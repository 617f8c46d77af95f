"""How many failures a run must expect, and the time that they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import RunConfig
from launcher.planning.forecast import Interval
from launcher.planning.scaling_model import Assumptions
from launcher.planning.work import Work

_LARGEST_MEAN = 50  # above it, a Poisson distribution is nearly normal


@dataclass(frozen=True, kw_only=True)
class Failures:
    """The failures of nodes in a run without those of code, data and people."""

    number: Interval  # Poisson's distribution
    expected: float  # its mean
    lost_s: Interval  # by repeated steps and restarts
    mtbf_hours: float  # of a node
    nodes: int


def expected_failures(config: RunConfig, undisturbed_s: Interval, work: Work, assumed: Assumptions) -> Failures:
    """The failures in a run that takes `undisturbed_s` without any; none for a single machine without GPUs.

    A failure costs half a checkpoint interval on average, and a restart.
    """
    nodes = config.cluster.nodes
    mtbf_s = assumed.mtbf_hours * 3600 / nodes
    between_s = undisturbed_s.median / work.saves
    at_risk = nodes > 1 or config.resources.gpus_per_worker > 0
    mean = undisturbed_s.median / mtbf_s if at_risk else 0.0
    number = Interval(
        low=poisson_quantile(mean, 0.1), median=poisson_quantile(mean, 0.5), high=poisson_quantile(mean, 0.9)
    )
    return Failures(
        number=number,
        expected=mean,
        lost_s=number.scaled(between_s / 2 + assumed.restart_s),
        mtbf_hours=assumed.mtbf_hours,
        nodes=nodes,
    )


def poisson_quantile(mean: float, part: float) -> int:
    """The smallest number that a Poisson variable with this mean does not exceed with probability `part`.

    >>> [poisson_quantile(2.0, part) for part in (0.1, 0.5, 0.9)]
    [0, 2, 4]
    """
    if mean > _LARGEST_MEAN:
        from statistics import NormalDist

        return max(round(NormalDist(mean, math.sqrt(mean)).inv_cdf(part)), 0)
    number, term = 0, math.exp(-mean)
    total = term
    while total < part:
        number += 1
        term *= mean / number
        total += term
    return number

"""Cost, jobs within a walltime, and failures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.config.schema import ClusterConfig, Preemption, Resources, RunConfig
from launcher.planning.cost import cost, failures, jobs
from launcher.planning.failures import poisson_quantile
from launcher.planning.forecast import Forecast, Interval
from launcher.planning.scaling_model import Assumptions

NOTHING = Interval.exactly(0)
HOUR = Interval.exactly(3600)


def forecast(wall_s: Interval, start_s: Interval = NOTHING, gpus: int = 8) -> Forecast:
    return Forecast(
        wall_s=wall_s,
        start_s=start_s,
        training_s=wall_s,
        evaluation_s=NOTHING,
        saving_s=NOTHING,
        failures_s=NOTHING,
        images_per_s=Interval.exactly(1),
        workers=8,
        gpus=gpus,
        evidence="assumption",
        source="",
    )


def test_the_cost_is_that_of_all_gpus() -> None:
    found = cost(forecast(Interval(low=1800, median=3600, high=7200)), 2.5)
    assert (found.low, found.median, found.high) == (10, 20, 40)
    assert cost(forecast(HOUR, gpus=0), 2.5) == NOTHING


def with_walltime(config: RunConfig, walltime: str | None) -> RunConfig:
    cluster = ClusterConfig(walltime=walltime, max_requeues=2)
    return replace(config, cluster=cluster, preemption=Preemption(notice_s=60))


def test_a_walltime_means_jobs_that_each_start_and_stop(config: RunConfig) -> None:
    wall_s = Interval(low=3000, median=3700, high=7600)
    found = jobs(with_walltime(config, "01:00:00"), forecast(wall_s, start_s=Interval.exactly(100)))
    assert found is not None
    assert (found.number.low, found.number.median, found.number.high) == (1, 2, 3)  # 3,440 useful seconds in a job
    assert (found.allowed, found.enough) == (2, False)
    whole = jobs(with_walltime(config, "03:00:00"), forecast(wall_s))
    assert whole is not None
    assert whole.enough


def test_without_a_walltime_there_are_no_jobs_and_a_too_short_one_never_ends(config: RunConfig) -> None:
    assert jobs(with_walltime(config, None), forecast(HOUR)) is None
    short = jobs(with_walltime(config, "00:02:00"), forecast(HOUR, start_s=Interval.exactly(100)))
    assert short is not None
    assert short.number.low == 1_000_000


def test_failures_grow_with_nodes_and_time(config: RunConfig) -> None:
    config = replace(config, resources=Resources(gpus_per_worker=1))
    often = Assumptions(mtbf_hours=1.0)
    one = failures(config, forecast(HOUR), often, 100)
    many = failures(replace(config, cluster=ClusterConfig(nodes=4)), forecast(HOUR), often, 100)
    assert (one.expected, many.expected) == (pytest.approx(1), pytest.approx(4))
    assert one.number == Interval(low=0, median=1, high=2)
    assert one.lost_s.median == pytest.approx(3600 / 2 / 2 + 120)  # half of one of two checkpoint intervals, a restart
    alone = failures(replace(config, resources=Resources()), forecast(HOUR), often, 100)
    assert (alone.expected, alone.lost_s) == (0, NOTHING)


def test_many_failures_are_nearly_normal() -> None:
    assert poisson_quantile(0, 0.9) == 0
    assert poisson_quantile(49, 0.9) == 58
    assert poisson_quantile(10_000, 0.5) == 10_000

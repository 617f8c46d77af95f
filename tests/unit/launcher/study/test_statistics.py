from __future__ import annotations

import math

import pytest
from scipy import stats

from launcher.study.statistics import Summary, paired, summarise


def test_the_interval_is_that_of_scipy() -> None:
    values = [0.844, 0.852, 0.849, 0.861]
    found = summarise(values)
    assert found is not None
    assert found.half is not None
    low, high = stats.t.interval(0.95, 3, loc=found.mean, scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-12)


def test_one_value_has_no_interval_and_none_no_summary() -> None:
    assert summarise([0.5]) == Summary(1, 0.5, None, None)
    assert summarise([]) is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.01, 0.011, 0.012], "larger"),
        ([-0.01, -0.011, -0.012], "smaller"),
        ([0.01, 0.03, -0.01], "inconclusive"),
        ([0.01], "inconclusive"),
        ([0.0, 0.0], "inconclusive"),
    ],
)
def test_a_difference_whose_interval_includes_0_is_inconclusive(values: list[float], verdict: str) -> None:
    found = summarise(values)
    assert found is not None
    assert found.verdict == verdict


def test_differences_are_paired_by_the_seeds_that_both_have() -> None:
    found = paired({0: 0.85, 1: 0.75, 3: 0.1}, {0: 0.84, 1: 0.74, 2: 0.9})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(0.01)
    assert found.deviation == pytest.approx(0.0, abs=1e-12)  # the spread between seeds cancels
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert not math.isnan(found.mean)

"""Intervals from few numbers contain 80 % of further ones."""

from __future__ import annotations

import math
import random

import pytest

from launcher.planning.spread import around, next_value, with_errors


def test_equal_numbers_leave_the_stated_spread() -> None:
    few, many = next_value([10.0], prior_sd=0.1), next_value([10.0] * 50, prior_sd=0.1)
    assert few.median == many.median == pytest.approx(10)
    assert few.relative_width > 0.3 > many.relative_width > 0.03


def test_the_spread_of_the_numbers_replaces_the_stated_one() -> None:
    numbers = [math.exp(0.5 * (-1) ** n) for n in range(100)]
    assert next_value(numbers, prior_sd=0.01).high == pytest.approx(math.exp(0.5 * 1.29), rel=0.02)


@pytest.mark.parametrize("num", [2, 4, 12])
def test_the_interval_contains_four_fifths_of_further_numbers(num: int) -> None:
    numbers = random.Random(num)
    inside = 0
    for _ in range(1000):
        values = [numbers.lognormvariate(2, 0.2) for _ in range(num + 1)]
        inside += next_value(values[:-1], prior_sd=0.2).contains(values[-1])
    assert 770 <= inside <= 900  # more with few numbers, whose mean is not known either


def test_errors_of_earlier_values_give_the_width_and_do_not_move_the_value() -> None:
    found = with_errors(100.0, [0.3, 0.3, 0.3, 0.3], prior_sd=0.1, more_sd=0.1)
    assert found.median == 100
    assert found.low < 100 / math.exp(0.3) < 100 * math.exp(0.3) < found.high


def test_a_known_deviation_gives_the_quantiles_of_a_normal_distribution() -> None:
    assert around(1.0, 0.5).high == pytest.approx(math.exp(1.2816 * 0.5), rel=1e-4)

"""Costs of amounts from the times of runs, and the errors on configurations that were left out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from launcher.planning.fit import Row, fit


def rows(num: int, noise: float = 0.0) -> list[Row]:
    """Times of 2 s for each of the first amount, 3 s for one of the third, nothing for the second."""
    numbers = random.Random(1)
    found = []
    for number in range(num):
        amounts = (numbers.uniform(1, 20), numbers.uniform(1, 20), 1.0)
        seconds = (2 * amounts[0] + 3) * numbers.lognormvariate(0, noise)
        found.append(Row(amounts, seconds, str(number)))
    return found


def test_costs_are_found_and_amounts_without_a_cost_are_left_out() -> None:
    found = fit(rows(12))
    assert found is not None
    assert found.costs == pytest.approx([2, 0, 3], abs=1e-6)
    assert found.errors == pytest.approx([0] * 12, abs=1e-6)
    assert found.seconds((10, 5, 1)) == pytest.approx(23)


def test_the_errors_are_those_of_a_fit_without_the_configuration() -> None:
    exact = rows(12)
    wrong = [replace(exact[0], seconds=exact[0].seconds * 4), *exact[1:]]
    found = fit(wrong)
    assert found is not None
    assert max(found.errors) == pytest.approx(1.386, abs=0.2)  # log 4, though the fit with it is pulled to it


def test_runs_of_one_configuration_are_left_out_together() -> None:
    same = [replace(row, configuration="one") for row in rows(4)]
    assert fit(same) is None
    found = fit([*same, replace(rows(5)[4], configuration="other")])
    assert found is None or len(found.errors) == 2


def test_noise_shows_in_the_errors() -> None:
    found = fit(rows(30, noise=0.2))
    assert found is not None
    assert 0.1 < (sum(error**2 for error in found.errors) / 30) ** 0.5 < 0.4
    assert all(cost >= 0 for cost in found.costs)


def test_the_median_of_the_errors_is_0() -> None:
    """Without a correction, the smallest squared relative error would give times that are too short."""
    found = fit(rows(31, noise=0.5))
    assert found is not None
    assert sorted(found.errors)[15] == pytest.approx(0)

"""Quantiles of Student's t distribution against scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from launcher.planning.student_t import t_between, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 29, 30, 333])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_quantiles_are_those_of_scipy(degrees: int, probability: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-12)
    assert t_between(1.7, degrees) == pytest.approx(1 - 2 * stats.t.sf(1.7, degrees), rel=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.5, 3), (1.0, 3), (0.9, 0)])
def test_other_quantiles_are_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="degrees from 1"):
        t_quantile(probability, degrees)

"""Intervals from few numbers: a log-normal distribution whose spread is that of the numbers and a stated one.

Times and speeds vary by factors, so the logarithms are normal. Their variance has a prior: `prior_sd` counts as much as
`_PRIOR_WEIGHT` more numbers, so that one or two equal numbers do not give an interval without width. The bounds are
quantiles of Student's t distribution (Gelman et al., Bayesian Data Analysis, section 3.3).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from launcher.planning.forecast import COVERAGE, Interval
from launcher.planning.student_t import t_quantile

_PRIOR_WEIGHT = 2


def next_value(values: Sequence[float], prior_sd: float, more_sd: float = 0.0) -> Interval:
    """The interval of one more number like `values`, which are above 0; there is at least one.

    `more_sd` is the standard deviation, of the logarithm, of what makes the next number different from these.
    """
    logs = [math.log(value) for value in values]
    centre, num = statistics.fmean(logs), len(logs)
    degrees = _PRIOR_WEIGHT + num - 1
    variance = (_PRIOR_WEIGHT * prior_sd**2 + sum((value - centre) ** 2 for value in logs)) / degrees
    return around(math.exp(centre), math.sqrt(variance * (1 + 1 / num) + more_sd**2), degrees)


def with_errors(
    value: float, errors: Sequence[float], prior_sd: float, more_sd: float = 0.0, num_costs: int = 0
) -> Interval:
    """The interval around a computed `value`, from the `errors` of values computed in this way: log(actual / value).

    `num_costs` were chosen so that these errors are small: as many of them do not count.
    """
    degrees = _PRIOR_WEIGHT + max(len(errors) - num_costs, 0)
    variance = (_PRIOR_WEIGHT * prior_sd**2 + sum(error**2 for error in errors)) / degrees
    return around(value, math.sqrt(variance + more_sd**2), degrees)


def around(median: float, sd: float, degrees: int | None = None) -> Interval:
    """The interval with this median whose logarithm has the standard deviation `sd`.

    `degrees` of freedom of the standard deviation; None: it is known.
    """
    upper = (1 + COVERAGE) / 2
    quantile = statistics.NormalDist().inv_cdf(upper) if degrees is None else t_quantile(upper, degrees)
    factor = math.exp(quantile * sd)
    return Interval(low=median / factor, median=median, high=median * factor)

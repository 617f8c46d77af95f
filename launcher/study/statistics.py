"""Mean, standard deviation, intervals and paired differences of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.planning.student_t import t_quantile

LEVEL = 0.95

Verdict = Literal["larger", "smaller", "inconclusive"]


@dataclass(frozen=True)
class Summary:
    """Of `n` numbers: their mean, standard deviation (n - 1) and half of the interval of the mean; None below 2."""

    n: int
    mean: float
    deviation: float | None
    half: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether the interval of the mean lies above or below 0; inconclusive if it includes 0 or there is none."""
        if self.half is None or abs(self.mean) <= self.half:
            return "inconclusive"
        return "larger" if self.mean > 0 else "smaller"


def summarise(values: Sequence[float]) -> Summary | None:
    """The summary of `values`; None without any.

    The interval of the mean is Student's: t(0.975, n - 1) s / sqrt(n). It assumes that the values are independent and
    normally distributed.

    >>> found = summarise([84.0, 86.0, 85.0])
    >>> found.n, found.mean, found.deviation, round(found.half, 3)
    (3, 85.0, 1.0, 2.484)
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(n, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(n, mean, deviation, t_quantile((1 + LEVEL) / 2, n - 1) * deviation / math.sqrt(n))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """The summary of the differences `values - baseline` of the seeds that both have; None without a common seed."""
    return summarise([values[seed] - baseline[seed] for seed in values if seed in baseline])

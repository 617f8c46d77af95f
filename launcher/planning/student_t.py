"""Student's t distribution, which the standard library lacks."""

from __future__ import annotations

import math


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with a whole number of degrees of freedom, for 0.5 < probability < 1.

    The inverse of `t_between`, by bisection.

    >>> round(t_quantile(0.975, 2), 4), round(t_quantile(0.975, 29), 4)
    (4.3027, 2.0452)
    """
    if not 0.5 < probability < 1 or degrees < 1:
        raise ValueError(f"a probability above 0.5 and below 1, and degrees from 1: {probability}, {degrees}")
    wanted = 2 * probability - 1
    low, high = 0.0, 1.0
    while t_between(high, degrees) < wanted:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_between(middle, degrees) < wanted else (low, middle)
    return high


def t_between(t: float, degrees: int) -> float:
    """The probability that |T| <= t, for t >= 0: a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total

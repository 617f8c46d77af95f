"""Values that a study draws."""

from __future__ import annotations

import math
import zlib

import numpy as np

from launcher.study.schema import Draw
from resnet_dist.data.random_bits import Purpose, uniform

DIGITS = 4  # significant digits of a drawn value: names and tables show it exactly


def drawn(draw: Draw, trial: int) -> dict[str, float]:
    """The values of trial number `trial`, from 0, by key: a function of the seed, the key and the trial only.

    So more trials, or another key, leave the other values as they are.

    >>> from launcher.study.schema import DrawRange
    >>> draw = Draw(trials=2, keys={"schedule.peak_lr": DrawRange(log_uniform=(0.01, 1.0))})
    >>> [drawn(draw, trial)["schedule.peak_lr"] for trial in range(2)]
    [0.6575, 0.2301]
    """
    values = {}
    for key, one in draw.keys.items():
        seed = draw.seed << 32 | zlib.crc32(key.encode())
        fraction = float(uniform(seed, np.array([trial]), Purpose.STUDY, 1)[0, 0])
        if one.log_uniform is not None:
            low, high = one.log_uniform
            value = low * (high / low) ** fraction
        else:
            assert one.uniform is not None
            low, high = one.uniform
            value = low + (high - low) * fraction
        values[key] = min(max(_rounded(value), low), high)
    return values


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value

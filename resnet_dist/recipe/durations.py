"""Durations: `44 epochs`, `500 steps`, `1e6 samples`.

All units are converted to samples, so that every event of a run (its end, an evaluation, a checkpoint, the end of
warm-up) is a function of the step, in whatever unit the config gives it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Unit = Literal["epochs", "steps", "samples"]

_PATTERN = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s+(epoch|step|sample)s?\s*$")
# An exact 1e100 would take time, 1e999999999 the memory.
_NUMBER = re.compile(r"[0-9.]{1,40}(?:[eE][+-]?0*[0-9]{1,2})?")

# A position in the stream is a 64-bit integer, also for the largest batch and the largest data set (2**31 - 1).
_LARGEST: dict[Unit, int] = {"epochs": 10**9, "steps": 10**9, "samples": 10**18}

FORM = (
    "a number and a unit: epochs, steps or samples (for example: 5 epochs, 500 steps, 1e6 samples), at most 1e9 epochs"
    " or steps, or 1e18 samples"
)


@dataclass(frozen=True)
class Duration:
    """A length of training. `count` is a fraction, so `0.1 epochs` of 1,281,167 samples is exact.

    >>> Duration.parse("44 epochs").steps(batch_size=8192, num_samples=1281167)
    6882
    >>> str(Duration.parse("1e6 samples"))
    '1000000 samples'
    """

    count: Fraction
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Parse `text`. Raises ValueError, with the allowed forms."""
        match = _PATTERN.match(text)
        if match is not None and _NUMBER.fullmatch(match[1]):
            unit: Unit = {"epoch": "epochs", "step": "steps", "sample": "samples"}[match[2]]  # type: ignore[assignment]
            count = Fraction(match[1])
            if count <= _LARGEST[unit]:
                return cls(count, unit)
        raise ValueError(f"{text!r} is not a duration; write {FORM}")

    def __str__(self) -> str:
        number = str(self.count.numerator) if self.count.denominator == 1 else repr(float(self.count))
        return f"{number} {self.unit.removesuffix('s') if self.count == 1 else self.unit}"

    def samples(self, *, batch_size: int, num_samples: int) -> Fraction:
        """The length in samples. `batch_size` is the global batch, `num_samples` the data set's size."""
        per_unit = {"epochs": num_samples, "steps": batch_size, "samples": 1}[self.unit]
        return self.count * per_unit

    def steps(self, *, batch_size: int, num_samples: int) -> int:
        """The length in optimizer steps, rounded up: `ceil(samples / batch_size)`."""
        return math.ceil(self.samples(batch_size=batch_size, num_samples=num_samples) / batch_size)


@dataclass(frozen=True)
class Every:
    """A recurring event. It fires after the first step whose end position reaches the next multiple of the period.

    >>> evaluate = Every(period=Fraction(1000), batch_size=300)    # every epoch of 1,000 samples
    >>> [step for step in range(1, 11) if evaluate.fires_after(step)]
    [4, 7, 10]
    """

    period: Fraction  # samples
    batch_size: int

    def fires_after(self, step: int) -> bool:
        """Whether the event follows step number `step` (1 is the first step that was completed)."""
        return step * self.batch_size // self.period > (step - 1) * self.batch_size // self.period

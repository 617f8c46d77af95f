"""Durations: `44 epochs`, `500 steps`, `1e6 samples`, and `10 %` of the run.

All units are converted to samples, so that every event of a run (its end, an evaluation, a checkpoint, the end of
warm-up) is a function of the step, in whatever unit the config gives it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.percentages import percentage

Unit = Literal["epochs", "steps", "samples", "%"]
Owner = TypeVar("Owner")

_PATTERN = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s+(epoch|step|sample)s?\s*$")
# An exact 1e100 would take time, 1e999999999 the memory.
_NUMBER = re.compile(r"[0-9.]{1,40}(?:[eE][+-]?0*[0-9]{1,2})?")

# A position in the stream is a 64-bit integer, also for the largest batch and the largest data set (2**31 - 1).
_LARGEST: dict[Unit, int] = {"epochs": 10**9, "steps": 10**9, "samples": 10**18}

FORM = (
    "a number and a unit: epochs, steps or samples (for example: 5 epochs, 500 steps, 1e6 samples), at most 1e9 epochs"
    " or steps, or 1e18 samples; or a part of the run: 10 %"
)
_LONGEST_TEXT = 40  # characters of a number, as in _NUMBER


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
        if (fraction := percentage(text)) is not None and fraction <= 1:
            return cls(100 * fraction, "%")
        match = _PATTERN.match(text)
        if match is not None and _NUMBER.fullmatch(match[1]):
            unit: Unit = {"epoch": "epochs", "step": "steps", "sample": "samples"}[match[2]]  # type: ignore[assignment]
            count = Fraction(match[1])
            if count <= _LARGEST[unit]:
                return cls(count, unit)
        raise ValueError(f"{text!r} is not a duration; write {FORM}")

    def __str__(self) -> str:
        return f"{_decimal(self.count)} {self.unit.removesuffix('s') if self.count == 1 else self.unit}"

    def of(self, total: Duration) -> Duration:
        """A percentage as that part of `total`, exact and in its unit; any other duration as it is.

        >>> str(Duration.parse("10 %").of(Duration.parse("44 epochs")))
        '4.4 epochs'
        """
        return Duration(self.count / 100 * total.count, total.unit) if self.unit == "%" else self

    def samples(self, *, batch_size: int, num_samples: int) -> Fraction:
        """The length in samples. `batch_size` is the global batch, `num_samples` the data set's size.

        Not for a percentage: `of` gives its length first.
        """
        per_unit = {"epochs": num_samples, "steps": batch_size, "samples": 1}[self.unit]
        return self.count * per_unit

    def steps(self, *, batch_size: int, num_samples: int) -> int:
        """The length in optimizer steps, rounded up: `ceil(samples / batch_size)`."""
        return math.ceil(self.samples(batch_size=batch_size, num_samples=num_samples) / batch_size)


def resolved(owner: Owner, duration: Duration) -> Owner:
    """`owner`, a dataclass such as a recipe, with all percentages inside replaced by that part of `duration`.

    Raises RecipeError for a `duration` that is a percentage itself.
    """
    if duration.unit == "%":
        raise RecipeError("duration", f"found {duration}", "a number of epochs, steps or samples")
    return _resolved(owner, duration)  # type: ignore[no-any-return]


def _resolved(value: Any, duration: Duration) -> Any:
    if isinstance(value, Duration):
        return value.of(duration)
    if isinstance(value, tuple):
        return tuple(_resolved(item, duration) for item in value)
    if isinstance(value, Mapping):  # data.progressive, or a section of the user's
        found = {_resolved(key, duration): item for key, item in value.items()}
        if len(found) < len(value):
            raise RecipeError("data.progressive", f"found one time twice in {', '.join(map(str, value))}", "each once")
        return found
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    found = {name: _resolved(part, duration) for name, part in parts.items()}
    return value if found == parts else dataclasses.replace(value, **found)


def _decimal(count: Fraction) -> str:
    """A number of at least 0 as text: exact if that is not too long to be read back.

    >>> _decimal(Fraction(44)), _decimal(Fraction(1, 8)), _decimal(Fraction(1, 3))
    ('44', '0.125', '0.3333333333333333')
    """
    if count.denominator == 1:
        return str(count.numerator)
    for places in range(1, _LONGEST_TEXT):
        scaled = count * 10**places
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(places + 1, "0")
            return f"{digits[:-places]}.{digits[-places:]}" if len(digits) < _LONGEST_TEXT else repr(float(count))
    return repr(float(count))


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

    def times_within(self, steps: int) -> int:
        """The number of events in the first `steps` steps: at most one after each."""
        return min(steps, int(steps * self.batch_size // self.period))

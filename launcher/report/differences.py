"""The differences between runs: their records step by step, and their configs and environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.config.dotted_keys import flatten
from launcher.run.record_types import Facts

Kind = Literal["train", "eval"]

# The quantities that are compared, in the order of cause and effect: samples and LR first, loss and gradient last.
QUANTITIES: Mapping[Kind, Sequence[str]] = {
    "train": ("sample_ids", "learning_rate", "loss", "gradient_norm"),
    "eval": ("num_samples", "loss", "top1", "top5"),
}
_EXACT = frozenset({"sample_ids", "num_samples"})  # checksums and counts: no tolerance


class Absent:
    """The value of a key that one side does not have; null is a value."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


@dataclass(frozen=True)
class Pair:
    """One quantity of one step in both runs. A value that is not finite is None, as in metrics.jsonl."""

    quantity: str
    step: int
    a: float | int | None
    b: float | int | None

    @property
    def absolute(self) -> float | None:
        """|a - b|; None for checksums and counts, and if a value is not finite."""
        if self.quantity in _EXACT or self.a is None or self.b is None:
            return None
        return abs(self.a - self.b)

    @property
    def relative(self) -> float | None:
        """|a - b| / max(|a|, |b|), and 0 if both are 0; None as for `absolute`.

        >>> Pair("loss", 1, 2.0, 1.0).relative, Pair("loss", 1, 0.0, 0.0).relative
        (0.5, 0.0)
        """
        difference = self.absolute
        if difference is None or self.a is None or self.b is None:
            return None
        return difference / max(abs(self.a), abs(self.b)) if difference else 0.0

    @property
    def weight(self) -> float:
        """The relative difference; infinity for different checksums, counts and values that are not finite."""
        relative = self.relative
        return relative if relative is not None else 0.0 if self.a == self.b else float("inf")

    def differs(self, tolerance: float) -> bool:
        """Whether the relative difference is more than `tolerance`; checksums, counts and null are compared exactly."""
        return self.weight > tolerance


@dataclass(frozen=True)
class Curve:
    """The comparison of the two runs' records of one kind."""

    kind: Kind
    common: tuple[int, ...]  # steps that both runs have
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    first: tuple[Pair, ...]  # all quantities of the first step in which any differs by more than the tolerance
    largest: tuple[Pair, ...]  # each quantity at the step where it differs most
    not_recorded: Mapping[str, str]  # quantity -> "A", "B" or "A and B"


@dataclass(frozen=True)
class Difference:
    """One dotted key with its value on both sides; ABSENT if a side has no such key."""

    key: str
    a: object
    b: object


def curve(kind: Kind, a: Sequence[Facts], b: Sequence[Facts], tolerance: float) -> Curve:
    """Compare the records of `kind` that both runs have for the same step."""
    records_a, records_b = ({one["step"]: one for one in records if one["kind"] == kind} for records in (a, b))
    common = sorted(records_a.keys() & records_b.keys())
    not_recorded: dict[str, str] = {}
    largest: list[Pair] = []
    differing: list[int] = []
    for quantity in QUANTITIES[kind] if common else ():
        sides = (("A", records_a), ("B", records_b))
        without = [side for side, records in sides if not any(quantity in one for one in records.values())]
        if without:
            not_recorded[quantity] = " and ".join(without)
            continue
        pairs = list(_pairs(quantity, common, records_a, records_b))
        if pairs:
            largest.append(max(pairs, key=lambda pair: pair.weight))  # the earliest step of equals
        differing += [pair.step for pair in pairs if pair.differs(tolerance)][:1]
    recorded = [quantity for quantity in QUANTITIES[kind] if quantity not in not_recorded]
    first = [pair for one in recorded for pair in _pairs(one, sorted(differing)[:1], records_a, records_b)]
    return Curve(
        kind=kind,
        common=tuple(common),
        only_a=tuple(sorted(records_a.keys() - records_b.keys())),
        only_b=tuple(sorted(records_b.keys() - records_a.keys())),
        first=tuple(first),
        largest=tuple(largest),
        not_recorded=not_recorded,
    )


def _has(quantity: str, record: Facts) -> bool:
    """Whether a record has a quantity. A null top-5 beside a top-1 is none: the model predicts at most 5 classes."""
    is_no_top5 = quantity == "top5" and record.get(quantity) is None and record.get("top1") is not None
    return quantity in record and not is_no_top5


def _pairs(quantity: str, steps: Sequence[int], a: Mapping[int, Facts], b: Mapping[int, Facts]) -> Iterator[Pair]:
    for step in steps:
        if _has(quantity, a[step]) and _has(quantity, b[step]):
            yield Pair(quantity, step, a[step][quantity], b[step][quantity])


def differences(a: Facts, b: Facts, leave_out: Sequence[str] = ()) -> list[Difference]:
    """The dotted keys in which two nested mappings differ, in order.

    >>> differences({"batch": {"size": 64}, "seed": 0}, {"batch": {"size": 32}, "seed": 0})
    [Difference(key='batch.size', a=64, b=32)]
    """
    flat_a, flat_b = flatten(a), flatten(b)
    found = [Difference(key, flat_a.get(key, ABSENT), flat_b.get(key, ABSENT)) for key in flat_a | flat_b]
    return [one for one in found if one.key not in leave_out and not _same(one.a, one.b)]


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and a == b  # true and 1 are equal in Python, but not in a config


def ranges(steps: Sequence[int]) -> str:
    """Steps in one line; equal distances are written as a range.

    >>> ranges([10, 20, 30, 35]), ranges([7]), ranges([])
    ('10 to 30 by 10, 35', '7', 'none')
    """
    parts, start = [], 0
    while start < len(steps):
        end = start + 1
        while end + 1 < len(steps) and steps[end + 1] - steps[end] == steps[start + 1] - steps[start]:
            end += 1
        if end < len(steps) and end > start + 1:
            by = steps[start + 1] - steps[start]
            parts.append(f"{steps[start]} to {steps[end]}" + (f" by {by}" if by > 1 else ""))
            start = end + 1
        else:
            parts.append(str(steps[start]))
            start += 1
    return ", ".join(parts) or "none"

"""Where two runs part: their records step by step, their configs, environments and attempts. No printing here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# What a step is compared in, in the order of cause and effect: samples and LR go in, loss and gradient come out.
TRAIN = ("sample_ids", "learning_rate", "loss", "gradient_norm")
EVAL = ("num_samples", "loss", "top1", "top5")
_EXACT = frozenset({"sample_ids", "num_samples"})  # checksums and counts: near is not good enough

Kind = Literal["train", "eval"]
Record = Mapping[str, Any]


class Absent:
    """Stands for a value that one side has not got; null is a value."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


@dataclass(frozen=True)
class Pair:
    """One quantity of one step in both runs.

    A value that is not finite is None, as metrics.jsonl writes it. `absolute` and `relative` (to the larger of the two
    magnitudes) are None where a difference says nothing: for checksums, and where one value is not finite.
    """

    quantity: str
    step: int
    a: float | int | None
    b: float | int | None

    @property
    def absolute(self) -> float | None:
        """|a - b|"""
        if self.quantity in _EXACT or self.a is None or self.b is None:
            return None
        return abs(self.a - self.b)

    @property
    def relative(self) -> float | None:
        """|a - b| / max(|a|, |b|), and 0 where both are 0.

        >>> Pair("loss", 1, 2.0, 1.0).relative, Pair("loss", 1, 0.0, 0.0).relative
        (0.5, 0.0)
        """
        difference = self.absolute
        if difference is None or self.a is None or self.b is None:
            return None
        return difference / max(abs(self.a), abs(self.b)) if difference else 0.0

    def differs(self, tolerance: float) -> bool:
        """Whether the values differ by more than the relative `tolerance`; checksums, counts and null exactly."""
        relative = self.relative
        return self.a != self.b if relative is None else relative > tolerance


@dataclass(frozen=True)
class Curve:
    """All that the two runs' records of one kind say about each other."""

    kind: Kind
    common: tuple[int, ...]  # steps that both have
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    first: tuple[Pair, ...]  # all quantities of the first step in which any differs by more than the tolerance
    largest: tuple[Pair, ...]  # each quantity at the step where it differs most
    not_recorded: Mapping[str, str]  # quantity -> "A", "B" or "A and B"

    @property
    def differs(self) -> bool:
        """Whether a common step differs."""
        return bool(self.first)


@dataclass(frozen=True)
class Difference:
    """One dotted key with its value on both sides; ABSENT where a side has no such key."""

    key: str
    a: Any
    b: Any


def curve(kind: Kind, a: Sequence[Record], b: Sequence[Record], tolerance: float) -> Curve:
    """Compare the records of `kind` that both runs have for the same step."""
    records_a, records_b = _by_step(kind, a), _by_step(kind, b)
    common = sorted(records_a.keys() & records_b.keys())
    not_recorded: dict[str, str] = {}
    recorded = []
    for quantity in TRAIN if kind == "train" else EVAL:
        sides = (("A", records_a), ("B", records_b))
        without = [side for side, records in sides if not any(quantity in record for record in records.values())]
        if without and common:
            not_recorded[quantity] = " and ".join(without)
        elif common:
            recorded.append(quantity)
    pairs = {step: list(_pairs(step, records_a[step], records_b[step], recorded)) for step in common}
    first = next((step for step in common if any(pair.differs(tolerance) for pair in pairs[step])), None)
    return Curve(
        kind=kind,
        common=tuple(common),
        only_a=tuple(sorted(records_a.keys() - records_b.keys())),
        only_b=tuple(sorted(records_b.keys() - records_a.keys())),
        first=() if first is None else tuple(pairs[first]),
        largest=tuple(_largest(pairs, recorded)),
        not_recorded=not_recorded,
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[Difference]:
    """The dotted keys in which two nested mappings differ, in order.

    >>> differences({"batch": {"size": 64}, "seed": 0}, {"batch": {"size": 32}, "seed": 0})
    [Difference(key='batch.size', a=64, b=32)]
    """
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    found = (Difference(key, flat_a.get(key, ABSENT), flat_b.get(key, ABSENT)) for key in keys)
    return [item for item in found if item.key not in leave_out and not _same(item.a, item.b)]


def ranges(steps: Sequence[int]) -> str:
    """Steps in a line: a run of equal distances is written as one.

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


def _by_step(kind: Kind, records: Sequence[Record]) -> dict[int, Record]:
    return {record["step"]: record for record in records if record["kind"] == kind}


def _pairs(step: int, a: Record, b: Record, quantities: Sequence[str]) -> Iterator[Pair]:
    for quantity in quantities:
        if quantity in a and quantity in b:
            yield Pair(quantity, step, a[quantity], b[quantity])


def _largest(pairs: Mapping[int, Sequence[Pair]], quantities: Sequence[str]) -> Iterator[Pair]:
    """Of each quantity the worst pair: one without a measure (a checksum, a null) that differs beats every number."""
    for quantity in quantities:
        of_it = [pair for step in pairs for pair in pairs[step] if pair.quantity == quantity]
        if of_it:  # max() keeps the first of equals: the earliest step
            yield max(of_it, key=_weight)


def _weight(pair: Pair) -> float:
    if pair.relative is None:
        return float("inf") if pair.a != pair.b else 0.0
    return pair.relative


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)  # true and 1 are equal in Python, and not the same in a config

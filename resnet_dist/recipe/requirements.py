"""Building blocks of rules: each yields a RecipeError if its condition does not hold."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import allowed_spans
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import Recipe, plain

REFERENCE_FORM = "package.module:function"

WEEK_S = 7 * 24 * 3600  # the longest timeout: three times as long is below the limit of system calls, 2**31 ms
LARGEST_COUNT = 2**31 - 1  # of anything; the product of two fits into the 64 bits of a position in the stream
LARGEST_IMAGE = 65_535  # pixels: of a JPEG's side; the square of a larger one would not fit into 32 bits


Condition = tuple[Callable[[Any], bool], str]  # what must hold for a value, and what is allowed, in words

DURATION_ABOVE_0: Condition = lambda duration: duration.count > 0, "a duration above 0"
PROBABILITY: Condition = lambda value: 0 <= value < 1, "at least 0 and below 1"
ABOVE_0: Condition = lambda value: 0 < value < math.inf, "a number above 0"
FROM_0: Condition = lambda value: 0 <= value < math.inf, "a number from 0 up"

# key, its condition, what is allowed
Values = tuple[tuple[str, Callable[[Any], bool], str], ...]
# key, the condition under which it has an effect, the key that decides it, and the value that this key needs
Uses = tuple[tuple[str, Callable[[Recipe], bool], str, str], ...]


def require(condition: bool, key: str, value: object, allowed: str) -> Iterator[RecipeError]:
    """An error for `key` unless `condition` holds."""
    if not condition:
        yield RecipeError(key, f"found {value}", allowed)


def whole(low: int, high: int = LARGEST_COUNT) -> Condition:
    """From `low` to `high`."""
    return lambda value: low <= value <= high, f"a whole number from {low} to {high}"


def values(owner: object, table: Iterable[tuple[str, Callable[[Any], bool], str]]) -> Iterator[RecipeError]:
    """An error for each dotted key in `table` whose value in `owner` does not hold. A value of None is not checked."""
    for key, holds, allowed in table:
        value = operator.attrgetter(key)(owner)
        shown = f'"{value}"' if isinstance(value, str) else plain(value)
        yield from require(value is None or holds(value), key, shown, allowed)


def unused(key: str, value: object, only_with: str, others: tuple[str, ...] = ()) -> Iterator[RecipeError]:
    """An error for an option that is given (not None) but has no effect. `others`: the keys that it depends on."""
    if value is not None:
        found = str(value).lower() if isinstance(value, bool) else value
        allowed = f"only with {only_with}; leave it out"
        yield RecipeError(key, f"found {found}, which has no effect here", allowed, others)


def uses(recipe: Recipe, table: Uses) -> Iterator[RecipeError]:
    """An error for each key in `table` that differs from its default but has no effect."""
    for key, has_effect, decided_by, wanted in table:
        owner_key, _, name = key.rpartition(".")
        owner = operator.attrgetter(owner_key)(recipe)
        part = next(part for part in dataclasses.fields(owner) if part.name == name)
        default = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        value = getattr(owner, name)
        if value != default and not has_effect(recipe):
            yield from unused(key, plain(value), f"{decided_by} {wanted}", (decided_by,))


def one_of(key: str, name: str, names: Sequence[str]) -> Iterator[RecipeError]:
    """An error unless `name` is one of `names`, or refers to a function of the user."""
    if name in names or is_reference(name):
        return
    near = nearest_name(name, names)
    hint = f". Did you mean {near}?" if near else ""
    yield RecipeError(key, f'found "{name}"', f"{', '.join(names)}, or {REFERENCE_FORM}{hint}")


def passed_already(key: str, section: Any, names: Iterable[str]) -> Iterator[RecipeError]:
    """An error for each of the user's `arguments` that the caller of their function passes itself."""
    if is_reference(section.name):
        for name in sorted(set(names) & set(section.arguments)):
            yield RecipeError(key, f"found {name}, which is passed already", "the other arguments")


def nearest_divisors(total: int, wanted: int) -> str:
    """The divisors of `total` next to `wanted` on both sides, as text.

    >>> nearest_divisors(96, 20)
    '16 or 24'
    """
    divisors = allowed_spans(total)
    below = [divisor for divisor in divisors if divisor < wanted][-1:]
    above = [divisor for divisor in divisors if divisor > wanted][:1]
    return " or ".join(map(str, below + above))


def nearest_name(name: str, names: Collection[str]) -> str:
    """The name in `names` that was probably meant, or an empty text. Of names that differ in a number, the nearest.

    >>> nearest_name("resnet21", ["resnet20", "resnet32"]), nearest_name("resent50", ["resnet50"])
    ('resnet20', 'resnet50')
    """
    stem = name.rstrip("0123456789")
    numbers = {int(one[len(stem) :]): one for one in names if one.startswith(stem) and one[len(stem) :].isdigit()}
    if stem and stem != name and numbers:
        wanted = int(name[len(stem) :])
        return numbers[min(numbers, key=lambda number: (abs(number - wanted), number))]
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")

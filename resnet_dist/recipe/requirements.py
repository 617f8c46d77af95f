"""What a value must be, and the problem that is told where it is not: the words of every rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import allowed_spans
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.references import is_reference

REFERENCE_FORM = "package.module:function"


def require(condition: bool, key: str, value: object, allowed: str) -> Iterator[RecipeError]:
    """A problem of `key` unless `condition` holds."""
    if not condition:
        yield RecipeError(key, f"found {value}", allowed)


def at_least(low: int, key: str, value: int) -> Iterator[RecipeError]:
    """`value` is to be `low` or more."""
    yield from require(value >= low, key, value, f"a whole number from {low} up")


def positive(key: str, duration: Duration) -> Iterator[RecipeError]:
    """`duration` is to be above 0."""
    yield from require(duration.count > 0, key, duration, "a duration above 0")


def unused(key: str, value: object, only_with: str) -> Iterator[RecipeError]:
    """An option that is given (not None) where it would do nothing."""
    if value is not None:
        found = str(value).lower() if isinstance(value, bool) else value
        yield RecipeError(key, f"found {found}, which would do nothing here", f"only with {only_with}; leave it out")


def one_of(key: str, name: str, names: Sequence[str]) -> Iterator[RecipeError]:
    """`name` is to be one of `names`, or refer to a function of the user's."""
    if name in names or is_reference(name):
        return
    near = _nearest_name(name, names)
    hint = f". Did you mean {near}?" if near else ""
    yield RecipeError(key, f'found "{name}"', f"{', '.join(names)}, or {REFERENCE_FORM}{hint}")


def nearest_divisors(total: int, wanted: int) -> str:
    """The divisors of `total` on both sides of `wanted`, for a message.

    >>> nearest_divisors(96, 20)
    '16 or 24'
    """
    divisors = allowed_spans(total)
    below = [divisor for divisor in divisors if divisor < wanted][-1:]
    above = [divisor for divisor in divisors if divisor > wanted][:1]
    return " or ".join(map(str, below + above))


def _nearest_name(name: str, names: Sequence[str]) -> str:
    """The name that was probably meant, or an empty text: of a family whose members differ in a number, the nearest.

    >>> _nearest_name("resnet21", ["resnet20", "resnet32"]), _nearest_name("resent50", ["resnet50"])
    ('resnet20', 'resnet50')
    """
    stem = name.rstrip("0123456789")
    numbers = {int(one[len(stem) :]): one for one in names if one.startswith(stem) and one[len(stem) :].isdigit()}
    if stem and stem != name and numbers:
        wanted = int(name[len(stem) :])
        return numbers[min(numbers, key=lambda number: (abs(number - wanted), number))]
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")

"""Rules for `evaluate` and `stop_at`."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import DURATION_ABOVE_0, Uses, Values, whole
from resnet_dist.recipe.schema import Recipe

VALUES: Values = (
    ("evaluate.every", *DURATION_ABOVE_0),
    ("evaluate.batch_size", *whole(1)),
)

USES: Uses = ()


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in what is evaluated, and in the target."""
    yield from ()

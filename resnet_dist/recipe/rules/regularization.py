"""Rules for `regularization`, `loss` and `data.augmentation`: what changes the images, the targets and the loss."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import PROBABILITY, Uses, Values
from resnet_dist.recipe.schema import Recipe

VALUES: Values = (("regularization.label_smoothing", *PROBABILITY),)

USES: Uses = ()


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in combinations of regularizers."""
    yield from ()

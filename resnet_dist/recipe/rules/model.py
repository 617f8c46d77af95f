"""Rules for `model`."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import REFERENCE_FORM, Uses, Values, one_of, passed_already, whole
from resnet_dist.recipe.schema import Recipe

MODEL_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),  # He et al. 2015, table 1: ImageNet
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),  # the same paper, section 4.2: 32-pixel images
)
_MOST_CLASSES = 1_000_000  # a larger head of a ResNet-50 does not fit into the memory of a GPU

VALUES: Values = (("model.num_classes", *whole(2, _MOST_CLASSES)),)

USES: Uses = (("model.arguments", lambda r: is_reference(r.model.name), "model.name", REFERENCE_FORM),)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the network and its initial weights."""
    yield from one_of("model.name", recipe.model.name, MODEL_NAMES)
    yield from passed_already("model.arguments", recipe.model, ("num_classes",))

"""Rules for `model`, and for the regularizers that are layers of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.architectures import MODELS
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import (
    PROBABILITY,
    REFERENCE_FORM,
    Uses,
    Values,
    one_of,
    passed_already,
    whole,
)
from resnet_dist.recipe.schema import Recipe

MODEL_NAMES = tuple(MODELS)
_MOST_CLASSES = 1_000_000  # a larger head of a ResNet-50 does not fit into the memory of a GPU
_LARGEST_WIDTH = 16  # a wider ResNet-50 has more than 6.5 billion parameters
_LARGEST_STD = 100

VALUES: Values = (
    ("model.num_classes", *whole(2, _MOST_CLASSES)),
    ("model.width", lambda width: 0 < width <= _LARGEST_WIDTH, f"above 0 and at most {_LARGEST_WIDTH}"),
    ("model.initialisation.std", lambda std: 0 < std <= _LARGEST_STD, f"above 0 and at most {_LARGEST_STD}"),
    ("regularization.dropout", *PROBABILITY),
    ("regularization.stochastic_depth", *PROBABILITY),
)

# key, the condition under which it has an effect, the key that decides it, and the value that this key needs
_Use = tuple[str, Callable[[Recipe], bool], str, str]


def _built_in(*keys: str) -> Iterator[_Use]:
    """Only built-in networks have these keys."""
    for key in keys:
        yield key, lambda r: not is_reference(r.model.name), "model.name", "of a built-in network"


def _without_weights(*keys: str) -> Iterator[_Use]:
    """Trained weights replace the initial values that these keys choose; a new head is N(0, 0.01) with any of them.

    `zero_gamma` has no effect with weights, too, but is accepted: earlier versions recorded runs with both.
    """
    for key in keys:
        yield key, lambda r: r.model.weights is None, "model.weights", "null"


USES: Uses = (
    ("model.arguments", lambda r: is_reference(r.model.name), "model.name", REFERENCE_FORM),
    *_built_in("model.residual", "model.width", "model.block", "model.shortcut", "model.normalisation"),
    *_built_in("model.activation_order", "model.initialisation.name", "model.initialisation.mode"),
    *_built_in("model.initialisation.std", "regularization.dropout", "regularization.stochastic_depth"),
    ("model.shortcut", lambda r: r.model.residual, "model.residual", "true"),
    ("regularization.stochastic_depth", lambda r: r.model.residual, "model.residual", "true"),
    *_without_weights("model.initialisation.name", "model.initialisation.mode", "model.initialisation.std"),
    ("model.zero_gamma", lambda r: r.model.residual, "model.residual", "true"),
    ("model.zero_gamma", lambda r: r.model.normalisation == "batch", "model.normalisation", "batch"),
    # with pre-activation a branch ends with a convolution
    ("model.zero_gamma", lambda r: r.model.activation_order == "original", "model.activation_order", "original"),
    (
        "model.initialisation.mode",
        lambda r: r.model.initialisation.name in ("he_normal", "he_uniform"),
        "model.initialisation.name",
        "he_normal or he_uniform",
    ),
    (
        "model.initialisation.std",
        lambda r: r.model.initialisation.name == "normal",
        "model.initialisation.name",
        "normal",
    ),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the network and its initial weights."""
    yield from one_of("model.name", recipe.model.name, MODEL_NAMES)
    yield from passed_already("model.arguments", recipe.model, ("num_classes",))
    named = MODELS.get(recipe.model.name)
    if named is not None and (named.groups, named.group_width) != (1, 64) and recipe.model.block == "basic":
        found = f"found basic with model.name {recipe.model.name}, whose bottlenecks have a width of their own"
        yield RecipeError("model.block", found, "bottleneck, or leave it out", ("model.name",))

"""Rules for `optimizer` and `ema`."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import (
    ABOVE_0,
    FROM_0,
    PROBABILITY,
    REFERENCE_FORM,
    Uses,
    Values,
    one_of,
    passed_already,
    whole,
)
from resnet_dist.recipe.schema import Recipe

OPTIMIZER_NAMES = ("sgd", "lars")

VALUES: Values = (
    ("optimizer.momentum", *PROBABILITY),
    ("optimizer.weight_decay", *FROM_0),
    ("optimizer.gradient_clipping", ABOVE_0[0], "a number above 0, or leave it out"),
    ("optimizer.trust_coefficient", *ABOVE_0),
    ("optimizer.epsilon", *FROM_0),
    ("ema.decay", lambda value: 0 < value < 1, "above 0 and below 1 (0.9999), or leave it out"),
    ("ema.every_steps", *whole(1)),
)

USES: Uses = (
    ("optimizer.arguments", lambda r: is_reference(r.optimizer.name), "optimizer.name", REFERENCE_FORM),
    ("optimizer.nesterov", lambda r: r.optimizer.name == "sgd", "optimizer.name", "sgd"),
    ("optimizer.nesterov", lambda r: r.optimizer.momentum != 0, "optimizer.momentum", "above 0"),
    ("optimizer.trust_coefficient", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.epsilon", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.lr_in_momentum", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("ema.every_steps", lambda r: r.ema.decay is not None, "ema.decay", "above 0"),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the optimizer and the moving average."""
    yield from one_of("optimizer.name", recipe.optimizer.name, OPTIMIZER_NAMES)
    yield from passed_already("optimizer.arguments", recipe.optimizer, ("groups", "momentum", "weight_decay"))

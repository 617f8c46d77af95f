"""Rules for `optimizer`, `regularization.l1` and `ema`."""

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

OPTIMIZER_NAMES = ("sgd", "lars", "lamb", "adamw")

_ADAM = ("lamb", "adamw")  # with two moments
_HAVE_BETAS = "lamb and adamw have betas"
_DECOUPLED = "that of lamb and adamw always is"

VALUES: Values = (
    ("optimizer.momentum", *PROBABILITY),
    ("optimizer.weight_decay", *FROM_0),
    ("optimizer.gradient_clipping", ABOVE_0[0], "a number above 0, or leave it out"),
    ("optimizer.trust_coefficient", *ABOVE_0),
    ("optimizer.epsilon", *FROM_0),
    ("optimizer.betas", lambda betas: all(map(PROBABILITY[0], betas)), f"two numbers, each {PROBABILITY[1]}"),
    (
        "optimizer.lr_factors",
        lambda factors: all(map(ABOVE_0[0], factors.values())),
        "names of modules or parameters, each with a number above 0",
    ),
    ("regularization.l1", *FROM_0),
    ("ema.decay", lambda value: 0 < value < 1, "above 0 and below 1 (0.9999), or leave it out"),
    ("ema.every_steps", *whole(1)),
)

USES: Uses = (
    ("optimizer.arguments", lambda r: is_reference(r.optimizer.name), "optimizer.name", REFERENCE_FORM),
    ("optimizer.momentum", lambda r: r.optimizer.name not in _ADAM, "optimizer.name", f"sgd and lars; {_HAVE_BETAS}"),
    ("optimizer.betas", lambda r: r.optimizer.name in _ADAM, "optimizer.name", "lamb and adamw"),
    ("optimizer.nesterov", lambda r: r.optimizer.name in ("sgd", "lars"), "optimizer.name", "sgd and lars"),
    ("optimizer.nesterov", lambda r: r.optimizer.momentum != 0, "optimizer.momentum", "above 0"),
    ("optimizer.trust_coefficient", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.epsilon", lambda r: r.optimizer.name in ("lars", *_ADAM), "optimizer.name", "lars, lamb and adamw"),
    ("optimizer.lr_in_momentum", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.decoupled_weight_decay", lambda r: r.optimizer.name == "sgd", "optimizer.name", f"sgd; {_DECOUPLED}"),
    ("optimizer.decoupled_weight_decay", lambda r: r.optimizer.weight_decay > 0, "optimizer.weight_decay", "above 0"),
    ("ema.every_steps", lambda r: r.ema.decay is not None, "ema.decay", "above 0"),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the optimizer and the moving average."""
    yield from one_of("optimizer.name", recipe.optimizer.name, OPTIMIZER_NAMES)
    if recipe.optimizer.name in _ADAM and recipe.optimizer.epsilon == 0:
        found = f"found 0 with optimizer.name {recipe.optimizer.name}: a gradient of 0 would be divided by 0"
        yield RecipeError("optimizer.epsilon", found, "a number above 0", ("optimizer.name",))
    yield from passed_already("optimizer.arguments", recipe.optimizer, ("groups", "momentum", "weight_decay"))

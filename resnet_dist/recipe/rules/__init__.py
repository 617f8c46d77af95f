"""The rules for recipes: allowed values and combinations, checked before anything is started.

An option that would have no effect is an error: `power` without polynomial decay, a milestone after the end. Each
module has the rules for some sections: VALUES, USES and a function `problems`. Types are checked by the config loader.
"""

from __future__ import annotations

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import resolved
from resnet_dist.recipe.requirements import uses, values, whole
from resnet_dist.recipe.rules import batch, data, engine, evaluation, model, optimizer, regularization, schedule
from resnet_dist.recipe.rules.batch import settled
from resnet_dist.recipe.rules.data import SOURCE_NAMES
from resnet_dist.recipe.rules.engine import ENGINE_NAMES
from resnet_dist.recipe.rules.model import MODEL_NAMES
from resnet_dist.recipe.rules.optimizer import OPTIMIZER_NAMES
from resnet_dist.recipe.rules.schedule import DECAY_NAMES, shorter_than
from resnet_dist.recipe.schema import Recipe

__all__ = [
    "DECAY_NAMES",
    "ENGINE_NAMES",
    "MODEL_NAMES",
    "OPTIMIZER_NAMES",
    "SOURCE_NAMES",
    "check",
    "problems",
    "settled",
    "shorter_than",
]

_LARGEST_SEED = 2**63 - 1  # a signed 64-bit integer: what torch's generators accept
_SECTIONS = (model, data, regularization, batch, optimizer, schedule, evaluation, engine)


def problems(recipe: Recipe, world_size: int, num_samples: int | None = None) -> list[RecipeError]:
    """All errors in `recipe` on `world_size` workers; empty if it can be trained.

    `num_samples` is the number of images that are trained on, if it is known; it defaults to
    `recipe.data.num_trained()`. Durations in different units are compared only if it is known.
    """
    num_samples = recipe.data.num_trained() if num_samples is None else num_samples
    try:
        recipe = resolved(recipe, recipe.duration)
    except RecipeError as error:
        return [error]
    return [
        *values(recipe, (("seed", *whole(0, _LARGEST_SEED)),)),
        *(error for section in _SECTIONS for error in values(recipe, section.VALUES)),
        *(error for section in _SECTIONS for error in uses(recipe, section.USES)),
        *model.problems(recipe),
        *data.problems(recipe),
        *regularization.problems(recipe),
        *batch.problems(recipe, world_size),
        *optimizer.problems(recipe),
        *schedule.problems(recipe, num_samples),
        *evaluation.problems(recipe),
        *engine.problems(recipe, world_size),
    ]


def check(recipe: Recipe, world_size: int, num_samples: int | None = None) -> None:
    """Raise the first of `problems`, a RecipeError, if there is any."""
    for problem in problems(recipe, world_size, num_samples):
        raise problem

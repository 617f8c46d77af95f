"""The peak learning rate: how it follows from the batch."""

from __future__ import annotations

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.published import published
from resnet_dist.recipe.schema import Recipe, ScheduleRecipe

# The batch of a base LR: 8 GPUs of 32 images in Goyal et al. 2017, arXiv 1706.02677, section 2.1.
REFERENCE_BATCH = 256


def peak_learning_rate(recipe: ScheduleRecipe, batch_size: int, run: Recipe | None = None) -> float:
    """The LR at the end of warm-up: `peak_lr`, `base_lr` scaled with the batch, or that of the published runs.

        linear   base_lr × batch_size / 256       Goyal et al. 2017 (arXiv 1706.02677), section 2.1: when the batch is k
                                                  times as large, multiply the LR by k
        none     base_lr
        table    of the published runs of the setting of `run` with this batch (`resnet_dist.recipe.published`)

    Raises RecipeError unless exactly one of `peak_lr` and `base_lr` is given (with table: neither), and for a batch
    or a setting for which nothing is published.

    >>> peak_learning_rate(ScheduleRecipe(base_lr=0.1), batch_size=8192)    # their ResNet-50 in one hour
    3.2
    """
    if recipe.scaling == "table":
        return _from_table(recipe, batch_size, run)
    if recipe.peak_lr is not None and recipe.base_lr is None:
        return recipe.peak_lr
    if recipe.base_lr is not None and recipe.peak_lr is None:
        return recipe.base_lr * batch_size / REFERENCE_BATCH if recipe.scaling == "linear" else recipe.base_lr
    found = "found neither peak_lr nor base_lr" if recipe.peak_lr is None else "found both peak_lr and base_lr"
    allowed = "exactly one of schedule.peak_lr and schedule.base_lr (for a batch of 256)"
    raise RecipeError("schedule.peak_lr", found, allowed, ("schedule.base_lr",))


def _from_table(recipe: ScheduleRecipe, batch_size: int, run: Recipe | None) -> float:
    assert run is not None, "the table has runs of several settings"
    for name in ("peak_lr", "base_lr"):
        if getattr(recipe, name) is not None:
            found = f"found {getattr(recipe, name)} with schedule.scaling table, which gives the peak LR"
            raise RecipeError(f"schedule.{name}", found, "leave it out, or scaling linear", ("schedule.scaling",))
    peak_lr = published(run, batch_size).number("peak_lr")
    assert peak_lr is not None  # every run has one
    return peak_lr

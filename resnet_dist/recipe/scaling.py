"""Linear scaling of the learning rate with the batch."""

from __future__ import annotations

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import ScheduleRecipe

# The batch of a base LR: 8 GPUs of 32 images in Goyal et al. 2017, arXiv 1706.02677, section 2.1.
REFERENCE_BATCH = 256


def peak_learning_rate(recipe: ScheduleRecipe, batch_size: int) -> float:
    """The LR at the end of warm-up: `peak_lr`, or `base_lr` × batch_size / 256.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 2.1: when the batch is k times as large, multiply the LR by k.
    Raises RecipeError unless exactly one of the two is given.

    >>> peak_learning_rate(ScheduleRecipe(base_lr=0.1), batch_size=8192)    # their ResNet-50 in one hour
    3.2
    """
    if recipe.peak_lr is not None and recipe.base_lr is None:
        return recipe.peak_lr
    if recipe.base_lr is not None and recipe.peak_lr is None:
        return recipe.base_lr * batch_size / REFERENCE_BATCH
    found = "found neither peak_lr nor base_lr" if recipe.peak_lr is None else "found both peak_lr and base_lr"
    allowed = "exactly one of schedule.peak_lr and schedule.base_lr (for a batch of 256)"
    raise RecipeError("schedule.peak_lr", found, allowed, ("schedule.base_lr",))

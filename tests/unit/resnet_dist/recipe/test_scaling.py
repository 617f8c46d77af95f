"""Linear scaling."""

from __future__ import annotations

import pytest

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.scaling import peak_learning_rate
from resnet_dist.recipe.schema import ScheduleRecipe


@pytest.mark.parametrize(("batch_size", "peak"), [(256, 0.1), (8192, 3.2), (64, 0.025)])
def test_a_base_lr_scales_with_the_batch(batch_size: int, peak: float) -> None:
    assert peak_learning_rate(ScheduleRecipe(base_lr=0.1), batch_size) == peak


def test_a_peak_lr_is_used_as_it_is() -> None:
    assert peak_learning_rate(ScheduleRecipe(peak_lr=17.0), 8192) == 17.0


def test_without_scaling_a_base_lr_is_used_as_it_is() -> None:
    assert peak_learning_rate(ScheduleRecipe(base_lr=0.1, scaling="none"), 8192) == 0.1


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (ScheduleRecipe(), "neither peak_lr nor base_lr"),
        (ScheduleRecipe(peak_lr=1.0, base_lr=1.0), "both peak_lr and base_lr"),
    ],
)
def test_one_of_the_two_must_be_given(recipe: ScheduleRecipe, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        peak_learning_rate(recipe, 256)

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schema import DataRecipe

SIZES = {"batch_size": 10, "num_samples": 105}


def of(parts: Mapping[str, int], resolution: int = 64) -> Resolutions:
    progressive = {Duration.parse(time): pixels for time, pixels in parts.items()}
    return Resolutions.of(DataRecipe(root="none", resolution=resolution, progressive=progressive), **SIZES)


def test_without_times_the_resolution_stays() -> None:
    assert [of({}).at(step) for step in (0, 1, 10**12)] == [64, 64, 64]


def test_each_resolution_holds_from_its_time_on() -> None:
    found = of({"2 steps": 96, "4 steps": 128})
    assert [found.at(step) for step in range(6)] == [64, 64, 96, 96, 128, 128]


def test_a_time_inside_a_step_has_an_effect_from_the_next_step_on() -> None:
    assert [of({"1 epoch": 96}).at(step) for step in (10, 11)] == [64, 96]  # 105 samples end in step 10
    assert [of({"100 samples": 96}).at(step) for step in (9, 10)] == [64, 96]


def test_a_first_time_of_0_leaves_the_other_resolution_to_evaluation() -> None:
    found = of({"0 steps": 32, "3 steps": 48})
    assert (found.first_steps, found.pixels) == ((0, 3), (32, 48))


def test_of_two_times_in_one_step_the_later_counts() -> None:
    assert of({"11 samples": 32, "12 samples": 48}).pixels == (64, 48)


@pytest.mark.parametrize(
    ("parts", "expected"), [({}, {64}), ({"1 step": 96, "2 steps": 64}, {64, 96}), ({"0 epochs": 32}, {32})]
)
def test_a_recipe_names_the_resolutions_that_training_has(parts: Mapping[str, int], expected: set[int]) -> None:
    progressive = {Duration.parse(time): pixels for time, pixels in parts.items()}
    recipe = DataRecipe(root="none", resolution=64, progressive=progressive)
    assert set(recipe.training_resolutions) == expected == set(Resolutions.of(recipe, **SIZES).pixels)


@given(times=st.lists(st.integers(0, 2000), max_size=6, unique=True), batch_size=st.integers(1, 300), data=st.data())
def test_it_is_the_last_time_that_the_first_sample_of_a_step_has_reached(
    times: list[int], batch_size: int, data: st.DataObject
) -> None:
    """In any order of the times, and for any batch size: so the sample, not the step, decides, up to a step."""
    progressive = {Duration.parse(f"{time} samples"): 10 + time for time in times}
    recipe = DataRecipe(root="none", resolution=9, progressive=progressive)
    found = Resolutions.of(recipe, batch_size=batch_size, num_samples=77)
    step = data.draw(st.integers(0, 300))
    assert found.at(step) == max((10 + time for time in times if time <= step * batch_size), default=9)

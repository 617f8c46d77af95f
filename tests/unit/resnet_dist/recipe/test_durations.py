"""Durations are exact, and events fire where the definition says."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import Duration, Every, resolved
from resnet_dist.recipe.requirements import LARGEST_COUNT
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, Recipe, ScheduleRecipe

sizes = st.integers(1, 10**7)
units = st.sampled_from(["epochs", "steps", "samples"])
# Up to 9 digits: what `str` writes of a fraction, a float's repr, names exactly.
counts = st.one_of(
    st.integers(0, 10**9).map(Fraction),
    st.builds(lambda digits, places: Fraction(digits, 10**places), st.integers(0, 10**9 - 1), st.integers(0, 9)),
)


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("44 epochs", Fraction(44), "epochs"),
        ("1 epoch", Fraction(1), "epochs"),
        ("0.1 epochs", Fraction(1, 10), "epochs"),
        ("500 steps", Fraction(500), "steps"),
        ("1e6 samples", Fraction(1_000_000), "samples"),
        ("  2.5E-1   step ", Fraction(1, 4), "steps"),
        ("3. epochs", Fraction(3), "epochs"),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, count: Fraction, unit: str) -> None:
    assert Duration.parse(text) == Duration(count, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "epochs", "5epochs", "five epochs", "-1 epoch", "5 parsecs", "5 epochs 3", "1/3 epochs", "5 Epochs"),
        *("1e99 steps", "1e999999999 epochs", "1000000001 epochs", "1.1e18 samples", f"{'9' * 4000} steps"),
    ],
)
def test_anything_else_is_refused_with_the_forms_that_are_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="epochs, steps or samples"):
        Duration.parse(text)


@pytest.mark.parametrize(("text", "count"), [("10 %", "10"), ("0.5%", "0.5"), (" 100 % ", "100"), ("33.3 %", "33.3")])
def test_a_percentage_is_a_duration_too(text: str, count: str) -> None:
    duration = Duration.parse(text)
    assert duration == Duration(Fraction(count), "%")
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["101 %", "100.1 %", "-1 %", "%", "1e1 %", "10 percent", "0.1234567890123 %"])
def test_what_is_no_percentage_of_a_run_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a part of the run: 10 %"):
        Duration.parse(text)


@given(st.integers(0, 10**6).map(lambda number: Fraction(number, 10**4)), counts, units)
@settings(deadline=None)
def test_a_percentage_is_that_part_of_the_run_exactly(percent: Fraction, count: Fraction, unit: str) -> None:
    total = Duration(count, unit)  # type: ignore[arg-type]
    part = Duration(percent, "%").of(total)
    assert part == Duration(percent * count / 100, unit)  # type: ignore[arg-type]
    assert Duration.parse(str(part)) == part  # also as config.yaml records it
    assert total.of(Duration.parse("5 epochs")) == total


def test_percentages_are_resolved_wherever_they_are() -> None:
    recipe = Recipe(
        data=DataRecipe(root="/data"),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("44 epochs"),
        schedule=ScheduleRecipe(
            peak_lr=1.0, warmup=Duration.parse("10 %"), milestones=(Duration.parse("3 epochs"), Duration.parse("50 %"))
        ),
    )
    found = resolved(recipe, recipe.duration)
    assert [str(found.schedule.warmup), *map(str, found.schedule.milestones)] == ["4.4 epochs", "3 epochs", "22 epochs"]
    assert resolved(found, found.duration) is found
    assert found.data is recipe.data


def test_the_duration_itself_is_no_percentage() -> None:
    recipe = ScheduleRecipe(peak_lr=1.0, warmup=Duration.parse("10 %"))
    with pytest.raises(RecipeError, match="found 50 %") as caught:
        resolved(recipe, Duration.parse("50 %"))
    assert (caught.value.key, caught.value.allowed) == ("duration", "a number of epochs, steps or samples")


@given(counts, units)
@settings(deadline=None)
def test_a_duration_written_out_reads_back_as_itself(count: Fraction, unit: str) -> None:
    duration = Duration(count, unit)  # type: ignore[arg-type]
    assert Duration.parse(str(duration)) == duration


def test_the_largest_durations_end_at_positions_of_64_bits() -> None:
    longest = {"epochs": "1e9 epochs", "steps": "1e9 steps", "samples": "1e18 samples"}
    largest = {"batch_size": LARGEST_COUNT, "num_samples": LARGEST_COUNT}
    assert all(Duration.parse(text).samples(**largest) < 2**63 for text in longest.values())


def test_one_is_singular() -> None:
    assert [str(Duration.parse(text)) for text in ("1 epochs", "2 epoch", "0.5 epoch")] == [
        "1 epoch",
        "2 epochs",
        "0.5 epochs",
    ]


@given(counts, units, sizes, sizes)
@settings(deadline=None)
def test_steps_are_the_fewest_whose_samples_reach_the_duration(
    count: Fraction, unit: str, batch_size: int, num_samples: int
) -> None:
    duration = Duration(count, unit)  # type: ignore[arg-type]
    samples = duration.samples(batch_size=batch_size, num_samples=num_samples)
    steps = duration.steps(batch_size=batch_size, num_samples=num_samples)
    assert samples == count * {"epochs": num_samples, "steps": batch_size, "samples": 1}[unit]
    assert steps * batch_size >= samples > (steps - 1) * batch_size


def test_a_tenth_of_an_epoch_is_not_rounded() -> None:
    tenth = Duration.parse("0.1 epochs")
    assert tenth.samples(batch_size=256, num_samples=1_281_167) == Fraction(1_281_167, 10)


@given(st.fractions(Fraction(1, 4), 200, max_denominator=50), st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None)
def test_an_event_fires_after_the_first_step_that_reaches_each_multiple(
    period: Fraction, batch_size: int, num_steps: int
) -> None:
    every = Every(period, batch_size)
    num_multiples = math.floor(num_steps * batch_size / period)
    expected = {math.ceil(multiple * period / batch_size) for multiple in range(1, num_multiples + 1)}
    assert {step for step in range(1, num_steps + 1) if every.fires_after(step)} == expected
    assert every.times_within(num_steps) == len(expected)

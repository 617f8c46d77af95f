from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.data import Index
from resnet_dist.data.sources.subset import proportional_counts, subset_of, trained_on
from resnet_dist.errors import RecipeError
from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, Recipe, ScheduleRecipe

SIZES = (70, 30, 11, 1)  # images of each class


def an_index(sizes: tuple[int, ...] = SIZES) -> Index:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    num = len(labels)
    return Index(
        root="/data",
        classes=tuple(f"class-{label}" for label in range(len(sizes))),
        paths=tuple(f"train/class-{label}/{number}.jpg" for number, label in enumerate(labels)),
        labels=labels,
        heights=np.arange(num),
        widths=np.arange(num) + 1,
    )


def counts_of(index: Index) -> list[int]:
    return np.bincount(index.labels, minlength=len(index.classes)).tolist()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any))
@settings(max_examples=30, deadline=None)
def test_counts_are_proportional_and_never_fall(sizes: list[int]) -> None:
    total, before = sum(sizes), np.zeros(len(sizes), dtype=np.int64)
    for num in range(1, total + 1):
        counts = proportional_counts(np.array(sizes), num)
        assert counts.sum() == num
        assert (counts >= before).all()
        for count, size in zip(counts.tolist(), sizes, strict=True):
            assert abs(count - Fraction(size * num, total)) < 1
        before = counts
    assert before.tolist() == sizes


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_smaller_subset_is_contained_in_a_larger_one(seed: int) -> None:
    index = an_index()
    smaller: set[str] = set()
    for num in range(1, len(index) + 1):
        part = set(subset_of(index, num, seed).paths)
        assert len(part) == num
        assert smaller <= part
        smaller = part


def test_the_choice_depends_on_the_seed_and_not_on_other_classes() -> None:
    one, other = (set(subset_of(an_index(), 56, seed).paths) for seed in (0, 1))
    assert one != other
    # 35 of the 70 images of class 0, whatever the sizes of the other classes.
    fewer = subset_of(an_index((70, 10)), 40, 0)
    of_first = [path for path in sorted(one) if "class-0" in path]
    assert of_first == sorted(path for path in fewer.paths if "class-0" in path)
    assert len(of_first) == 35


def test_every_image_is_chosen_equally_often() -> None:
    index = an_index((40, 20))
    chosen = [path for seed in range(100) for path in subset_of(index, 15, seed).paths]
    _, times = np.unique(chosen, return_counts=True)
    assert len(times) == 60
    # binomial: 100 × 1/4, standard deviation 4.3; seeds are fixed, so this is exact
    assert abs(times - 25).max() < 4 * 4.3


def test_rows_keep_their_order_and_their_sizes() -> None:
    index = an_index()
    part = subset_of(index, 40, 3)
    rows = [index.paths.index(path) for path in part.paths]
    assert rows == sorted(rows)
    assert part.labels.tolist() == index.labels[rows].tolist()
    assert part.heights.tolist() == index.heights[rows].tolist()
    assert part.widths.tolist() == index.widths[rows].tolist()
    assert (part.root, part.classes) == (index.root, index.classes)


def test_the_fingerprint_is_that_of_the_subset(tmp_path: Path) -> None:
    index = an_index()
    choices = ((40, 0), (41, 0), (40, 1))  # number, seed
    parts = [trained_on(DataRecipe(root="/data", subset=num), seed, index, 0) for num, seed in choices]
    assert len({part.fingerprint() for part in (*parts, index)}) == 4
    parts[0].save(tmp_path / "train.safetensors")
    assert Index.load(tmp_path / "train.safetensors").fingerprint() == parts[0].fingerprint()


@pytest.mark.parametrize(
    ("subset", "num"), [(None, 112), (112, 112), (40, 40), (1, 1), (0.5, 56), (0.1, 11), (0.999, 112), (0.001, 1)]
)
def test_a_number_is_exact_and_a_fraction_rounded(subset: int | float | None, num: int) -> None:
    data = DataRecipe(root="/data", subset=subset)
    assert len(trained_on(data, 0, an_index(), 0)) == num
    assert data.num_trained(112) == num


def test_the_number_that_is_trained_on_is_known_without_the_data_if_it_can_be() -> None:
    known = [
        DataRecipe(root="/data", subset=subset, num_samples=num_samples).num_trained()
        for subset in (None, 40, 0.5)
        for num_samples in (None, 112)
    ]
    assert known == [None, 112, 40, 40, None, 56]


def test_more_images_than_there_are_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"data\.subset: asks for 113 images, .* has 112\. Allowed: at most 112"):
        trained_on(DataRecipe(root="/data", subset=113), 0, an_index(), 0)


def test_classes_without_an_image_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for rank in range(3):
        assert counts_of(trained_on(DataRecipe(root="/data", subset=3), 0, an_index(), rank))[2:] == [0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "data.subset: the 3 images for training have none of 2 of 4 classes: class-2, class-3"
    ]


@pytest.mark.parametrize("subset", [None, 1, 112, 0.001, 0.999])
def test_a_subset_is_a_number_or_a_fraction(subset: int | float | None) -> None:
    assert problems(subset) == []


@pytest.mark.parametrize("subset", [0, -1, 1.0, 1.5, 2000.0, 0.0, -0.5, float("nan"), float("inf"), 2**31])
def test_another_subset_is_refused(subset: int | float) -> None:
    [problem] = problems(subset)
    assert problem.allowed == "a number of images (a whole number from 1 up), or a fraction above 0 and below 1"


def test_durations_are_compared_with_the_number_that_is_trained_on() -> None:
    assert problems(56, warmup="1 epoch", duration="40 samples", num_samples=112) != []
    assert problems(30, warmup="1 epoch", duration="40 samples", num_samples=112) == []


def problems(
    subset: int | float | None, warmup: str = "0 steps", duration: str = "1 epoch", num_samples: int | None = None
) -> list[RecipeError]:
    recipe = Recipe(
        data=DataRecipe(root="/data", subset=subset, num_samples=num_samples),
        batch=BatchRecipe(size=8),
        duration=Duration.parse(duration),
        schedule=ScheduleRecipe(peak_lr=0.1, warmup=Duration.parse(warmup)),
    )
    return rules.problems(recipe, 1)

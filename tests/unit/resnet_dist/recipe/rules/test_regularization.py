"""Regularizers, losses and augmentations that make no sense are refused with their key and what is allowed."""

from __future__ import annotations

import math

import pytest
import torchvision.transforms.v2

from resnet_dist.data import policies
from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.rules.regularization import HIGHEST_MAGNITUDE
from resnet_dist.recipe.schema import (
    AugmentationRecipe,
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    LossRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)

MINE = "my_package.my_module:function"
MIXED = RegularizationRecipe(mixup=0.2, cutmix=1.0)


def recipe(
    regularization: RegularizationRecipe = MIXED,
    loss: LossRecipe | None = None,
    augmentation: AugmentationRecipe | None = None,
    color_jitter: float = 0.0,
    size: int = 96,
    parts: int = 1,
) -> Recipe:
    data = DataRecipe(root="/data", color_jitter=color_jitter, augmentation=augmentation or AugmentationRecipe())
    return Recipe(
        data=data,
        batch=BatchRecipe(size=size, num_micro_batches=parts),
        batch_norm=BatchNormRecipe(span="worker"),
        duration=Duration.parse("10 steps"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        regularization=regularization,
        loss=loss or LossRecipe(),
    )


@pytest.mark.parametrize(
    "good",
    [
        recipe(),
        recipe(RegularizationRecipe(mixup=2.0, random_erasing=1.0, label_smoothing=0.1), color_jitter=0.4),
        recipe(loss=LossRecipe(name="bce", target_threshold=0.2, class_weights="balanced")),
        recipe(RegularizationRecipe(label_smoothing=0.1), LossRecipe(name="bce", class_weights="balanced")),
        recipe(loss=LossRecipe(name=MINE, arguments={"gamma": 2})),
        recipe(augmentation=AugmentationRecipe(name="randaugment", magnitude=0, num_ops=1)),
        recipe(augmentation=AugmentationRecipe(name="trivialaugment")),
        recipe(augmentation=AugmentationRecipe(name=MINE, arguments={"strength": 2})),
        recipe(RegularizationRecipe(), size=95),
    ],
)
def test_a_combination_that_makes_sense_has_no_problems(good: Recipe) -> None:
    assert rules.problems(good, world_size=3) == []


BAD: list[tuple[Recipe, str, str]] = [
    (recipe(RegularizationRecipe(mixup=-0.1)), "regularization.mixup", "from 0 (off) to 100"),
    (recipe(RegularizationRecipe(mixup=math.nan)), "regularization.mixup", "from 0 (off) to 100"),
    (recipe(RegularizationRecipe(cutmix=math.inf)), "regularization.cutmix", "from 0 (off) to 100"),
    (recipe(RegularizationRecipe(random_erasing=1.1)), "regularization.random_erasing", "from 0 to 1"),
    (recipe(RegularizationRecipe(random_erasing=math.nan)), "regularization.random_erasing", "from 0 to 1"),
    (recipe(color_jitter=-0.1), "data.color_jitter", "from 0 (none) to 10"),
    (recipe(color_jitter=math.inf), "data.color_jitter", "from 0 (none) to 10"),
    (recipe(size=95), "batch.size", "a micro-batch of 95 samples is odd"),
    (
        recipe(RegularizationRecipe(cutmix=1.0), size=90, parts=2),
        "batch.size",
        "an even batch.size / num_micro_batches",
    ),
    (recipe(size=4), "workers", "more than the 2 pairs of a micro-batch"),
    (recipe(size=12, parts=3), "workers", "at most 2"),
    (recipe(loss=LossRecipe(name="focal")), "loss.name", "cross_entropy, bce, or package.module:function"),
    (recipe(loss=LossRecipe(name="crossentropy")), "loss.name", "Did you mean cross_entropy?"),
    (recipe(loss=LossRecipe(arguments={"gamma": 2})), "loss.arguments", "only with loss.name package.module:function"),
    (recipe(loss=LossRecipe(name=MINE, arguments={"targets": 2})), "loss.arguments", "passed already"),
    (recipe(loss=LossRecipe(name=MINE, class_weights="balanced")), "loss.class_weights", "cross_entropy or bce"),
    (
        recipe(RegularizationRecipe(label_smoothing=0.1), LossRecipe(name=MINE)),
        "regularization.label_smoothing",
        "only with loss.name cross_entropy or bce",
    ),
    (recipe(loss=LossRecipe(target_threshold=0.2)), "loss.target_threshold", "only with loss.name bce"),
    (recipe(loss=LossRecipe(name="bce", target_threshold=1.0)), "loss.target_threshold", "below 1"),
    (
        recipe(RegularizationRecipe(), LossRecipe(name="bce", target_threshold=0.2)),
        "loss.target_threshold",
        "only with mixup or cutmix above 0",
    ),
    (recipe(augmentation=AugmentationRecipe(name="randaug")), "data.augmentation.name", "Did you mean randaugment?"),
    (
        recipe(augmentation=AugmentationRecipe(magnitude=9)),
        "data.augmentation.magnitude",
        "only with data.augmentation.name randaugment",
    ),
    (
        recipe(augmentation=AugmentationRecipe(name="trivialaugment", num_ops=1)),
        "data.augmentation.num_ops",
        "only with data.augmentation.name randaugment",
    ),
    (
        recipe(augmentation=AugmentationRecipe(name="randaugment", magnitude=31)),
        "data.augmentation.magnitude",
        "from 0 to 30",
    ),
    (recipe(augmentation=AugmentationRecipe(name="randaugment", num_ops=0)), "data.augmentation.num_ops", "from 1 to"),
    (
        recipe(augmentation=AugmentationRecipe(name="randaugment", arguments={"a": 1})),
        "data.augmentation.arguments",
        "only with data.augmentation.name package.module:function",
    ),
    (
        recipe(augmentation=AugmentationRecipe(name=MINE, arguments={"uniform": 1})),
        "data.augmentation.arguments",
        "passed already",
    ),
]


@pytest.mark.parametrize(("bad", "key", "said"), BAD)
def test_a_mistake_is_named_by_its_key_with_what_is_allowed(bad: Recipe, key: str, said: str) -> None:
    [problem] = rules.problems(bad, world_size=3)
    assert problem.key == key
    assert said in str(problem)


def test_a_pair_for_each_worker_is_enough() -> None:
    assert rules.problems(recipe(size=6), world_size=3) == []


def test_the_magnitudes_are_those_of_the_table() -> None:
    assert policies.NUM_LEVELS == HIGHEST_MAGNITUDE + 1
    assert torchvision.transforms.v2.RandAugment().num_magnitude_bins == HIGHEST_MAGNITUDE + 1

"""A recipe's masks are added to its model, and drawn for each batch before it is moved."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models import build_model
from resnet_dist.models.resnet import ResNet
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.training.masks import add_masks, drawing

RECIPE = Recipe(
    data=DataRecipe(root="none", resolution=8),
    batch=BatchRecipe(size=4),
    duration=Duration.parse("1 step"),
    schedule=ScheduleRecipe(peak_lr=0.1),
    model=ModelRecipe(name="resnet8", num_classes=3),
)


def batch(first: int) -> HostBatch:
    positions = torch.arange(first, first + 4)
    return HostBatch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), positions, 0)


def to_device(batch: HostBatch) -> MicroBatch:
    return MicroBatch(batch.images.float() + 1, batch.labels)


def outputs(regularization: RegularizationRecipe, seed: int = 0) -> list[torch.Tensor]:
    """Of two micro-batches with the same images at other positions."""
    recipe = dataclasses.replace(RECIPE, regularization=regularization, seed=seed)
    model = build_model(recipe.model, seed=0)
    move = drawing(add_masks(model, recipe), to_device)
    with torch.no_grad():
        return [model(move(batch(first)).images) for first in (0, 4)]


def test_without_masks_nothing_is_added() -> None:
    model = build_model(RECIPE.model, seed=0)
    assert add_masks(model, RECIPE) is None
    assert drawing(None, to_device) is to_device
    assert isinstance(model, ResNet)
    assert model.dropout is None
    first, second = outputs(RegularizationRecipe())
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "regularization", [RegularizationRecipe(dropout=0.5), RegularizationRecipe(stochastic_depth=0.9)]
)
def test_masks_depend_on_the_positions_and_the_seed(regularization: RegularizationRecipe) -> None:
    first, second = outputs(regularization)
    assert not torch.equal(first, second)
    again = outputs(regularization)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, outputs(regularization, seed=1)[0])


def test_dropout_and_stochastic_depth_draw_independent_numbers() -> None:
    recipe = dataclasses.replace(RECIPE, regularization=RegularizationRecipe(dropout=0.5, stochastic_depth=0.5))
    masks = add_masks(build_model(recipe.model, seed=0), recipe)
    assert masks is not None
    masks(torch.arange(1000))
    units, depth = (draws.factors[:, -1] > 0 for draws in masks._all_draws)
    assert 400 < (units == depth).sum().item() < 600

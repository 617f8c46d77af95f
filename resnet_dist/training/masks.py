"""Adds the random masks of a recipe to its model, and draws them before each micro-batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from resnet_dist.data.loader import HostBatch
from resnet_dist.data.random_bits import Purpose, stream
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models.masks import SampleMasks, add_dropout, add_stochastic_depth
from resnet_dist.models.resnet import ResNet
from resnet_dist.recipe.schema import Recipe


def add_masks(model: nn.Module, recipe: Recipe) -> SampleMasks | None:
    """Add dropout and stochastic depth to `model`, which is on its device; None if the recipe has neither.

    Call it before an engine wraps or compiles the model.
    """
    dropout, depth = recipe.regularization.dropout, recipe.regularization.stochastic_depth
    if not dropout and not depth:
        return None
    assert isinstance(model, ResNet)  # by the rules
    draws = []
    if dropout:
        draws.append(add_dropout(model, dropout, stream(recipe.seed, Purpose.DROPOUT)))
    if depth:
        draws.append(add_stochastic_depth(model, depth, stream(recipe.seed, Purpose.STOCHASTIC_DEPTH)))
    return SampleMasks(draws, model.fc.weight.device)


def drawing(
    masks: SampleMasks | None, to_device: Callable[[HostBatch], MicroBatch]
) -> Callable[[HostBatch], MicroBatch]:
    """`to_device` that also draws `masks` for its batch; itself without masks.

    The masks are those of the last batch, so a batch must be computed before the next one is moved.
    """
    if masks is None:
        return to_device

    def draw_and_move(batch: HostBatch) -> MicroBatch:
        masks(batch.positions[batch.good()] if batch.broken else batch.positions)
        return to_device(batch)

    return draw_and_move

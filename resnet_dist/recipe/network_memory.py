"""The memory and the batch norms of a built-in network, from its architecture, without torch.

Used to plan a run. `resnet_dist.telemetry.memory` counts the tensors of any module; both agree (a test).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from resnet_dist.recipe.architectures import Architecture, architecture_of, whole
from resnet_dist.recipe.network_cost import num_weights
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import ModelRecipe, Recipe

# Factor on the memory saved for the backward pass: gradients of two layers at a time, workspaces, fragmentation.
# Assumption; if it is too small, the next attempt uses more micro-batches.
HEADROOM = 1.2

_INDEX_BYTES = 8  # max-pooling saves the place of each maximum


@dataclass
class _Saved:
    """The elements that autograd saves for one image."""

    norms: bool  # whether there are batch norms, which save their inputs
    activations: int = 0
    indices: int = 0
    num_norms: int = 0

    def add(self, channels: int, pixels: int) -> None:
        self.activations += channels * pixels**2

    def norm(self, channels: int, pixels: int) -> None:
        """The input of a norm."""
        if self.norms:
            self.add(channels, pixels)
            self.num_norms += 1

    def norm_and_relu(self, channels: int, pixels: int) -> None:
        """The input of a norm, and the output of the ReLU after it, which the next convolution takes."""
        self.norm(channels, pixels)
        self.add(channels, pixels)


def step_bytes(recipe: Recipe) -> tuple[int, int] | None:
    """The bytes that a worker needs in a step independent of its number of samples, and the bytes per sample.

    The former are weights, gradients, optimizer state and the average of the weights; the latter are the tensors that
    autograd saves for the backward pass at the largest resolution of training, times `HEADROOM`. None for a user's
    model, whose size is unknown here.
    """
    weights = num_weights(recipe.model)
    if weights is None:
        return None
    saved = _saved(architecture_of(recipe.model), max(recipe.data.training_resolutions))
    width = 8 if recipe.precision == "float64" else 4
    copies = 2 + recipe.optimizer.num_states + (recipe.ema.decay is not None)
    element = 2 if recipe.precision in ("bfloat16", "float16") else width
    return weights * width * copies, int((saved.activations * element + saved.indices * _INDEX_BYTES) * HEADROOM)


def num_batch_norms(model: ModelRecipe) -> int | None:
    """The number of batch norms of a network; None for a user's model."""
    return None if is_reference(model.name) else _saved(architecture_of(model), resolution=32).num_norms


def _saved(architecture: Architecture, resolution: int) -> _Saved:
    """What a forward pass on one image of `resolution` pixels saves."""
    saved = _Saved(architecture.batch_norm)
    channels, pixels = whole(architecture.planes[0]), resolution
    saved.add(3, pixels)
    if architecture.stem == "small":
        saved.norm_and_relu(channels, pixels)
    else:
        pixels = _halved(pixels)
        if architecture.stem == "deep":
            for _ in range(2):
                saved.norm_and_relu(whole(architecture.planes[0] / 2), pixels)
        saved.norm_and_relu(channels, pixels)
        pixels = _halved(pixels)  # max-pooling
        saved.add(channels, pixels)
        saved.indices += channels * pixels**2
    for stage, depth in enumerate(architecture.depths):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            _add_block(saved, architecture, stage, channels, pixels, stride, first=stage == number == 0)
            channels, pixels = architecture.out_channels(stage), pixels if stride == 1 else _halved(pixels)
    if architecture.pre_activation:
        saved.norm_and_relu(channels, pixels)
    saved.add(channels, 1)  # the input of the linear layer
    return saved


def _add_block(
    saved: _Saved, architecture: Architecture, stage: int, channels: int, pixels: int, stride: int, *, first: bool
) -> None:
    out, inner = architecture.out_channels(stage), architecture.inner(stage)
    after = pixels if stride == 1 else _halved(pixels)
    between = [(out, after)] if architecture.block == "basic" else [(inner, pixels), (inner, after)]
    if architecture.pre_activation and not first:
        saved.norm_and_relu(channels, pixels)
    for size in between:
        saved.norm_and_relu(*size)
    if not architecture.pre_activation:
        saved.norm_and_relu(out, after)  # the ReLU comes after the sum
    needed = stride != 1 or channels != out or architecture.shortcut == "projection_all"
    if architecture.residual and needed and architecture.shortcut != "identity":
        if architecture.pooled_shortcut and stride != 1:
            saved.add(channels, after)  # the average, which the convolution takes
        if not architecture.pre_activation:
            saved.norm(out, after)


def _halved(pixels: int) -> int:
    return math.ceil(pixels / 2)

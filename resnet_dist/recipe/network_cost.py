"""The floating-point operations and the parameters of a built-in network, from its architecture, without torch.

Used to plan a run. `resnet_dist.telemetry.flops` counts the operations of any module; both agree (a test).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from resnet_dist.recipe.architectures import MODELS, Architecture, architecture_of, whole
from resnet_dist.recipe.schema import ModelRecipe

# Gradients take as many operations as the forward pass: one with respect to the weights, one to the input.
_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class _Layer:
    """A convolution, or the linear layer (`pixels` 1), on one image."""

    in_channels: int
    out_channels: int
    kernel: int
    pixels: int  # height and width of its output
    groups: int = 1

    @property
    def num_weights(self) -> int:
        return self.in_channels // self.groups * self.out_channels * self.kernel**2

    @property
    def flops(self) -> int:
        """Of the forward pass; a multiplication and an addition count as two."""
        return 2 * self.num_weights * self.pixels**2


def training_flops(model: ModelRecipe, resolution: int) -> int | None:
    """FLOPs per image, forward and backward, without the gradient with respect to the image; None for a user's model.

    Frozen layers count as if they were trained.

    >>> round(training_flops(ModelRecipe(name="resnet50"), 224) / 1e9, 1)
    24.3
    """
    if model.name not in MODELS:
        return None
    first, *others = _layers(architecture_of(model), model.num_classes, resolution)
    return (_FORWARD_AND_BACKWARD - 1) * first.flops + _FORWARD_AND_BACKWARD * sum(layer.flops for layer in others)


def num_weights(model: ModelRecipe) -> int | None:
    """The weights of convolutions and of the linear layer, without norms and biases (below 1 %); None for a user's.

    >>> num_weights(ModelRecipe(name="resnet50"))
    25502912
    """
    if model.name not in MODELS:
        return None
    return sum(layer.num_weights for layer in _layers(architecture_of(model), model.num_classes, resolution=32))


def _layers(architecture: Architecture, num_classes: int, resolution: int) -> Iterator[_Layer]:
    channels, pixels = whole(architecture.planes[0]), resolution
    if architecture.stem == "small":
        yield _Layer(3, channels, 3, pixels)
    else:
        pixels = _halved(pixels)
        if architecture.stem == "imagenet":
            yield _Layer(3, channels, 7, pixels)
        else:
            half = whole(architecture.planes[0] / 2)
            yield from (_Layer(3, half, 3, pixels), _Layer(half, half, 3, pixels), _Layer(half, channels, 3, pixels))
        pixels = _halved(pixels)  # max-pooling
    for stage, depth in enumerate(architecture.depths):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            yield from _block(architecture, stage, channels, pixels, stride)
            channels, pixels = architecture.out_channels(stage), pixels if stride == 1 else _halved(pixels)
    yield _Layer(channels, num_classes, 1, 1)


def _block(architecture: Architecture, stage: int, channels: int, pixels: int, stride: int) -> Iterator[_Layer]:
    out, inner = architecture.out_channels(stage), architecture.inner(stage)
    after = pixels if stride == 1 else _halved(pixels)
    if architecture.block == "basic":
        yield from (_Layer(channels, out, 3, after), _Layer(out, out, 3, after))
    else:
        yield _Layer(channels, inner, 1, pixels)
        yield from (_Layer(inner, inner, 3, after, architecture.groups), _Layer(inner, out, 1, after))
    changes_shape = stride != 1 or channels != out
    needed = changes_shape or architecture.shortcut == "projection_all"
    if architecture.residual and needed and architecture.shortcut != "identity":
        yield _Layer(channels, out, 1, after)


def _halved(pixels: int) -> int:
    return math.ceil(pixels / 2)

"""Random operations on single images: colour jitter, RandAugment and TrivialAugment.

torchvision.transforms.v2.functional computes the pixels. The choice of the operations and their strengths is a function
of (seed, position in the stream), so the pixels depend neither on workers and threads nor on restarts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.random_bits import Purpose, uniform

# image uint8 [3, height, width], strength -> the changed image
Operation = Callable[[Tensor, float], Tensor]
# operations on one image with their strengths, in their order
Steps = list[tuple[Operation, float]]


class _Functional:
    """torchvision.transforms.v2.functional, imported with its first use.

    Most runs use none of it, and torchvision imports torch's compiler, which takes as long as the rest of torch.
    """

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        from torchvision.transforms.v2 import functional

        operation: Callable[..., Tensor] = getattr(functional, name)
        return operation


F = _Functional()


class Policy(Protocol):
    """Chooses operations for each image."""

    def steps(self, positions: NDArray[np.int64], resolution: int) -> list[Steps]:
        """The operations on the images at positions int64 [n] of the stream, `resolution` pixels high and wide."""
        ...


def apply(image: Tensor, steps: Steps) -> Tensor:
    """`image`, uint8 [3, height, width], after all `steps`."""
    for operation, strength in steps:
        image = operation(image, strength)
    return image


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """torchvision's."""
    return F.adjust_brightness(image, factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """torchvision's."""
    return F.adjust_contrast(image, factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """torchvision's."""
    return F.adjust_saturation(image, factor)


_JITTERS: tuple[Operation, ...] = (adjust_brightness, adjust_contrast, adjust_saturation)


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation in a random order, as torchvision's ColorJitter does.

    The three factors are uniform in [max(0, 1 - largest), 1 + largest]; 1 changes nothing.
    """

    largest: float
    seed: int

    def steps(self, positions: NDArray[np.int64], resolution: int) -> list[Steps]:
        """See `Policy.steps`. The resolution has no effect."""
        draws = uniform(self.seed, positions, Purpose.COLOR_JITTER, 6)
        low, high = max(0.0, 1.0 - self.largest), 1.0 + self.largest
        factors = (low + (high - low) * draws[:, :3]).tolist()
        orders = np.argsort(draws[:, 3:], axis=1, kind="stable").tolist()
        return [
            [(_JITTERS[number], own[number]) for number in order] for own, order in zip(factors, orders, strict=True)
        ]


def _sheared(image: Tensor, *, x: float = 0.0, y: float = 0.0) -> Tensor:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    sheared: Tensor = F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
    return sheared


def _translated(image: Tensor, *, x: float = 0.0, y: float = 0.0) -> Tensor:
    translated: Tensor = F.affine(image, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return translated


# torchvision's operations, in its order. Pixels from outside of the image are black.
OPERATIONS: Mapping[str, Operation] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, strength: _sheared(image, x=strength),
    "ShearY": lambda image, strength: _sheared(image, y=strength),
    "TranslateX": lambda image, strength: _translated(image, x=strength),
    "TranslateY": lambda image, strength: _translated(image, y=strength),
    "Rotate": lambda image, strength: F.rotate(image, angle=strength),
    "Brightness": lambda image, strength: F.adjust_brightness(image, 1.0 + strength),
    "Color": lambda image, strength: F.adjust_saturation(image, 1.0 + strength),
    "Contrast": lambda image, strength: F.adjust_contrast(image, 1.0 + strength),
    "Sharpness": lambda image, strength: F.adjust_sharpness(image, 1.0 + strength),
    "Posterize": lambda image, strength: F.posterize(image, int(strength)),
    "Solarize": lambda image, strength: F.solarize(image, 255.0 * strength),
    "AutoContrast": lambda image, _: F.autocontrast(image),
    "Equalize": lambda image, _: F.equalize(image),
}
_OPERATIONS = tuple(OPERATIONS.values())
_COLORS = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLORS})  # +strength or -strength
NUM_LEVELS = 31  # of the strength


def _strengths(shear: float, translate: float, rotate: float, color: float, posterize: int) -> NDArray[np.float64]:
    """The strengths of all operations at all levels, float64 [operations, levels], from those at the highest level.

    `translate` is in pixels, `rotate` in degrees, `posterize` the number of bits that are removed. The numbers are
    torchvision's, which are float32.
    """
    highest = {"ShearX": shear, "ShearY": shear, "TranslateX": translate, "TranslateY": translate, "Rotate": rotate}
    highest |= dict.fromkeys(_COLORS, color)
    table = {name: torch.linspace(0.0, value, NUM_LEVELS) for name, value in highest.items()}
    table["Posterize"] = (8 - torch.arange(NUM_LEVELS) / ((NUM_LEVELS - 1) / posterize)).round()  # bits that are kept
    table["Solarize"] = torch.linspace(1.0, 0.0, NUM_LEVELS)
    unused = torch.zeros(NUM_LEVELS)
    rows: NDArray[np.float64] = torch.stack([table.get(name, unused) for name in OPERATIONS]).double().numpy()
    return rows


def _choice(draws: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Uniform whole numbers below `num`, from uniform numbers in [0, 1)."""
    return np.floor(draws * num).astype(np.int64)


def _chosen(
    operations: NDArray[np.int64], strengths: NDArray[np.float64], sign_draws: NDArray[np.float64]
) -> list[Steps]:
    """Steps of all images from three arrays [n, operations per image]."""
    signed = np.array([name in SIGNED for name in OPERATIONS])[operations]
    strengths = np.where(signed & (sign_draws < 0.5), -strengths, strengths)
    return [
        [(_OPERATIONS[number], strength) for number, strength in zip(*own, strict=True)]
        for own in zip(operations.tolist(), strengths.tolist(), strict=True)
    ]


class RandAugment:
    """`num_ops` operations for each image, uniform and independent, all at level `magnitude` of 0 to 30.

    Cubuk et al. 2019, RandAugment, arXiv 1909.13719, with the operations and strengths of torchvision's RandAugment.
    Translations are in proportion to the resolution.
    """

    def __init__(self, num_ops: int, magnitude: int, seed: int) -> None:
        self._num_ops, self._magnitude, self._seed = num_ops, magnitude, seed

    def steps(self, positions: NDArray[np.int64], resolution: int) -> list[Steps]:
        """See `Policy.steps`."""
        draws = uniform(self._seed, positions, Purpose.AUGMENTATION, 2 * self._num_ops)
        operations = _choice(draws[:, ::2], len(OPERATIONS))
        strengths = _of_randaugment(resolution)[:, self._magnitude]
        return _chosen(operations, strengths[operations], draws[:, 1::2])


@functools.cache
def _of_randaugment(resolution: int) -> NDArray[np.float64]:
    return _strengths(shear=0.3, translate=150.0 / 331.0 * resolution, rotate=30.0, color=0.9, posterize=4)


class TrivialAugment:
    """One operation for each image, at a level that is uniform too.

    Müller and Hutter 2021, TrivialAugment, arXiv 2103.10158, with the operations and strengths of torchvision's
    TrivialAugmentWide.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._strengths = _strengths(shear=0.99, translate=32.0, rotate=135.0, color=0.99, posterize=6)

    def steps(self, positions: NDArray[np.int64], resolution: int) -> list[Steps]:
        """See `Policy.steps`. The resolution has no effect: translations are of at most 32 pixels."""
        draws = uniform(self._seed, positions, Purpose.AUGMENTATION, 3)
        operations, levels = _choice(draws[:, :1], len(OPERATIONS)), _choice(draws[:, 1:2], NUM_LEVELS)
        return _chosen(operations, self._strengths[operations, levels], draws[:, 2:])

"""Random and central crops, as windows in whole pixels, and random flips.

A window is (top, left, height, width), int32, inside the image. Windows are integers so that every decoder crops the
same pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.random_bits import Purpose, uniform

_TRIES = 10  # torchvision.transforms.RandomResizedCrop


def training_windows(
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    positions: NDArray[np.int64],
    seed: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> NDArray[np.int32]:
    """Random windows int32 [n, 4] (top, left, height, width) for images of `heights` × `widths` pixels, int32 [n].

    The distribution is that of torchvision's RandomResizedCrop (Szegedy et al. 2015, Going Deeper with Convolutions,
    section 6): the fraction of the image's area is uniform in `area`, width / height is log-uniform in `aspect`. The
    first of ten draws that fits into the image is used, or else the largest central window with an allowed aspect. A
    pure function of (seed, position) and the image's size.
    """
    height, width = heights.astype(np.float64), widths.astype(np.float64)
    draws = uniform(seed, positions, Purpose.CROP, 2 * _TRIES + 2)
    fraction = area[0] + (area[1] - area[0]) * draws[:, :_TRIES]
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
    ratio = np.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * draws[:, _TRIES : 2 * _TRIES])

    # All tries at once, float64 [n, tries]. The last bit of exp may differ between types of CPU; the probability that
    # this moves a window by a pixel is about 1e-13 per draw.
    pixels = fraction * (height * width)[:, None]
    tried_width, tried_height = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
    fits = (tried_height >= 1) & (tried_height <= height[:, None])
    fits &= (tried_width >= 1) & (tried_width <= width[:, None])
    first, rows = np.argmax(fits, axis=1), np.arange(len(positions))
    central_height, central_width = _central(height, width, aspect)
    any_fits = fits[rows, first]
    window_height = np.where(any_fits, tried_height[rows, first], central_height)
    window_width = np.where(any_fits, tried_width[rows, first], central_width)

    free_height, free_width = height - window_height, width - window_width
    top = np.where(any_fits, np.floor(draws[:, -2] * (free_height + 1)), free_height // 2)
    left = np.where(any_fits, np.floor(draws[:, -1] * (free_width + 1)), free_width // 2)
    return np.stack([top, left, window_height, window_width], axis=1).astype(np.int32)


def _central(
    height: NDArray[np.float64], width: NDArray[np.float64], aspect: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Height and width of the largest window with an allowed aspect."""
    lowest, highest = aspect
    return np.clip(np.rint(width / lowest), 1, height), np.clip(np.rint(height * highest), 1, width)


def flips(positions: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Whether each position's image is flipped left to right, bool [n]: p = 0.5, a function of (seed, position)."""
    return uniform(seed, positions, Purpose.FLIP, 1)[:, 0] < 0.5


def evaluation_windows(heights: NDArray[np.int32], widths: NDArray[np.int32], fraction: float) -> NDArray[np.int32]:
    """Central squares int32 [n, 4] whose side is `fraction` of the image's shorter side, rounded.

    A fraction of 0.875 = 224 / 256 gives the same part of the image as resizing the shorter side to 256 and cropping
    the central 224 × 224 pixels. Cropping first resizes fewer pixels and rounds once.
    """
    shorter = np.minimum(heights, widths)
    side = np.maximum(np.rint(fraction * shorter), 1).astype(np.int32)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1).astype(np.int32)

"""Random erasing, and boxes on tensors of images."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.random_bits import Purpose, uniform

# torchvision.transforms.RandomErasing
_AREA, _ASPECT, _TRIES = (0.02, 0.33), (0.3, 3.3), 10


@dataclass(frozen=True)
class RandomErasing:
    """Sets a random rectangle of an image to 0, the mean after normalisation, with `probability`.

    Zhong et al. 2020, Random Erasing Data Augmentation, arXiv 1708.04896, with the distribution of torchvision's
    RandomErasing: the area is uniform in 2 % to 33 % of the image, height / width log-uniform in 0.3 to 3.3, and the
    first of ten draws that is smaller than the image in both directions is used; if there is none, nothing is erased.
    """

    probability: float
    seed: int

    def draw(self, positions: NDArray[np.int64], height: int, width: int) -> NDArray[np.float64]:
        """Boxes float64 [n, 4] (top, left, bottom, right) for images of `height` × `width` pixels; empty: no erasing.

        A pure function of (seed, position).
        """
        draws = uniform(self.seed, positions, Purpose.ERASING, 2 * _TRIES + 3)
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, :_TRIES])
        logarithms = math.log(_ASPECT[0]), math.log(_ASPECT[1])
        aspect = np.exp(logarithms[0] + (logarithms[1] - logarithms[0]) * draws[:, _TRIES : 2 * _TRIES])
        heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (heights < height) & (widths < width)
        first, rows = np.argmax(fits, axis=1), np.arange(len(positions))
        erased = fits[rows, first] & (draws[:, -1] < self.probability)
        own_height = np.where(erased, heights[rows, first], 0.0)
        own_width = np.where(erased, widths[rows, first], 0.0)
        top = np.floor(draws[:, -3] * (height - own_height + 1))
        left = np.floor(draws[:, -2] * (width - own_width + 1))
        return np.stack([top, left, top + own_height, left + own_width], axis=1)

    def separate(self, drawn: NDArray[np.float64], broken: Collection[int]) -> None:
        """Do nothing: an image is erased without looking at others."""

    def apply(self, images: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Erase the boxes of `draw` in `images`, floating [n, 3, height, width], in place; the labels stay."""
        return images.masked_fill_(inside(boxes, *images.shape[2:]), 0.0), labels


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """The pixels in boxes [n, 4] (top, left, bottom, right; the last two are outside), bool [n, 1, height, width]."""
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    rows = torch.arange(height, device=boxes.device)[:, None]
    columns = torch.arange(width, device=boxes.device)
    mask = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return mask[:, None]

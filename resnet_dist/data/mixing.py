"""Mixup and CutMix: the two images of a pair are mixed with each other, and their labels in the same proportion.

Pairs are the positions (2k, 2k + 1) of the stream, and `BatchLayout` keeps them on one worker.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.erasing import inside
from resnet_dist.data.random_bits import Purpose, uniform


@dataclass(frozen=True)
class PairMixing:
    """Mixup with Beta(`mixup`, `mixup`) or CutMix with Beta(`cutmix`, `cutmix`); if both are above 0, half of each.

        mixup     image = lambda * image + (1 - lambda) * partner
        CutMix    a box of the partner with the area 1 - lambda, around a uniform centre and cut off at the edges of
                  the image; lambda is then corrected to the area that is left
        both      label = lambda * label + (1 - lambda) * label of the partner

    Zhang et al. 2018, mixup, arXiv 1710.09412; Yun et al. 2019, CutMix, arXiv 1905.04899, algorithm A1.
    """

    mixup: float
    cutmix: float
    num_classes: int
    seed: int

    def draw(self, positions: NDArray[np.int64], height: int, width: int) -> NDArray[np.float64]:
        """The partner's part in each image at `positions`, int64 [n], whole pairs: float64 [n, 6].

        The columns are the partner's weight outside of the box, the box (top, left, bottom, right; empty for mixup),
        and the weight of the partner's label. A pure function of (seed, pair).
        """
        assert len(positions) % 2 == 0
        assert positions[0] % 2 == 0
        draws = uniform(self.seed, positions[::2], Purpose.MIXING, 5)
        cuts = draws[:, 4] < (0.5 if self.mixup > 0 and self.cutmix > 0 else float(self.cutmix > 0))
        alphas = np.where(cuts, self.cutmix, self.mixup)
        partner = 1.0 - symmetric_beta(alphas, draws[:, 0], draws[:, 1])
        # A box of height × width × (1 - lambda); Yun et al. halve whole pixels, so its sides are even.
        side = np.sqrt(partner)
        half_height, half_width = np.floor(height * side / 2), np.floor(width * side / 2)
        row, column = np.floor(draws[:, 2] * height), np.floor(draws[:, 3] * width)
        top, bottom = np.maximum(row - half_height, 0), np.minimum(row + half_height, height)
        left, right = np.maximum(column - half_width, 0), np.minimum(column + half_width, width)
        cut_area = (bottom - top) * (right - left) / (height * width)
        box = np.where(cuts[:, None], np.stack([top, left, bottom, right], axis=1), 0.0)
        outside = np.where(cuts, 0.0, partner)
        in_label = np.where(cuts, cut_area, partner)
        return np.repeat(np.column_stack([outside, box, in_label]), 2, axis=0)

    def separate(self, drawn: NDArray[np.float64], broken: Collection[int]) -> None:
        """Change the numbers of `draw` so that no image of a pair with a `broken` sample, by number, is mixed."""
        for number in broken:
            drawn[number - number % 2 : number - number % 2 + 2] = 0.0

    def apply(self, images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Mix `images`, floating [n, 3, height, width], and `labels`, int64 [n], with the numbers of `draw`.

        Returns the mixed images and labels, floating [n, classes], both of the images' dtype.
        """
        weights = drawn[:, 0, None, None, None]
        if self.cutmix > 0:  # without boxes a weight for each image is enough
            weights = weights.masked_fill(inside(drawn[:, 1:5], *images.shape[2:]), 1.0)
        targets = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(images.dtype)
        return _mixed(images, weights), _mixed(targets, drawn[:, 5:])


def _mixed(own: Tensor, partners_weights: Tensor) -> Tensor:
    """(1 - weight) * own + weight * partner. Weights are float64, so that 1 - weight is rounded only once."""
    partner = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return (own * (1.0 - partners_weights).to(own.dtype)).add_(partner.mul_(partners_weights.to(own.dtype)))


def symmetric_beta(
    alpha: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Numbers with the distribution Beta(alpha, alpha) from two uniform numbers each, without rejection.

    With T of Student's distribution with 2 alpha degrees of freedom, 1/2 + T / (2 sqrt(2 alpha + T²)) is
    Beta(alpha, alpha) (Devroye 1986, Non-Uniform Random Variate Generation, chapter IX.5); by the polar method of
    Bailey 1994 (Mathematics of Computation 62), T² = 2 alpha (U^(-1 / alpha) - 1) cos²(2 pi V).

    >>> symmetric_beta(np.array([1.0]), np.array([0.75]), np.array([0.0])).round(12).tolist()
    [0.75]
    """
    power, cosine = first ** (1.0 / alpha), np.cos(2.0 * np.pi * second)
    numbers: NDArray[np.float64] = 0.5 + 0.5 * np.sqrt(1.0 - power) * cosine / np.sqrt(
        power + (1.0 - power) * cosine**2
    )
    return numbers

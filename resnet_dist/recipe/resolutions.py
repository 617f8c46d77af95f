"""The resolution of training images as a function of the step (`data.progressive`)."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from resnet_dist.recipe.schema import DataRecipe


@dataclass(frozen=True)
class Resolutions:
    """A piecewise constant function of the step.

    first_steps  first step of each part, ascending from 0; step 0 is the first of the stream
    pixels       height and width of the training images in each part

    >>> sizes = Resolutions(first_steps=(0, 30), pixels=(128, 160))
    >>> [sizes.at(step) for step in (0, 29, 30, 10**9)]
    [128, 128, 160, 160]
    """

    first_steps: tuple[int, ...]
    pixels: tuple[int, ...]

    @classmethod
    def of(cls, data: DataRecipe, *, batch_size: int, num_samples: int) -> Resolutions:
        """`data.resolution` up to the first time in `data.progressive`, then that time's, up to the next time.

        A time that lies inside a step has an effect from the next step on. `num_samples` is the number of training
        images. The times are no percentages: `resolved` has replaced them.
        """
        sizes = {"batch_size": batch_size, "num_samples": num_samples}
        changes = sorted((time.samples(**sizes), pixels) for time, pixels in data.progressive.items())
        parts = {0: data.resolution} | {math.ceil(time / batch_size): pixels for time, pixels in changes}
        return cls(tuple(parts), tuple(parts.values()))

    def at(self, step: int) -> int:
        """Height and width of the images of `step`, 0 or more."""
        return self.pixels[bisect_right(self.first_steps, step) - 1]

"""Rules for `data`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import ABOVE_0, LARGEST_COUNT, Uses, Values, one_of, whole
from resnet_dist.recipe.schema import Recipe

SOURCE_NAMES = ("imagefolder",)
_LARGEST_IMAGE = 65_535  # pixels: of a JPEG's side; the square of a larger one would not fit into 32 bits

VALUES: Values = (
    ("data.resolution", *whole(8, _LARGEST_IMAGE)),
    ("data.crop_area", lambda area: 0 < area[0] <= area[1] <= 1, "[low, high] with 0 < low <= high <= 1"),
    ("data.crop_aspect", lambda ratio: 0 < ratio[0] <= ratio[1] < math.inf, "[low, high] with 0 < low <= high"),
    ("data.evaluation_crop", lambda crop: 0 < crop <= 1, "above 0 and at most 1"),
    ("data.mean", lambda mean: all(map(math.isfinite, mean)), "three finite numbers"),
    ("data.std", lambda std: all(map(ABOVE_0[0], std)), "three numbers above 0"),
    ("data.prefetch", *whole(1)),
    ("data.num_samples", *whole(1)),
    (
        "data.subset",
        lambda part: 0 < part < 1 or (isinstance(part, int) and 1 <= part <= LARGEST_COUNT),
        "a number of images (a whole number from 1 up), or a fraction above 0 and below 1",
    ),
)

USES: Uses = ()


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the source of the images."""
    yield from one_of("data.source", recipe.data.source, SOURCE_NAMES)
    num_samples, subset = recipe.data.num_samples, recipe.data.subset
    if num_samples is not None and isinstance(subset, int) and subset > num_samples:
        found = f"found {subset}, and the training split has {num_samples} images (data.num_samples)"
        yield RecipeError("data.subset", found, f"at most {num_samples}, or leave it out", ("data.num_samples",))

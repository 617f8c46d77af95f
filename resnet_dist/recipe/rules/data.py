"""Rules for `data`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.requirements import ABOVE_0, LARGEST_COUNT, LARGEST_IMAGE, Uses, Values, one_of, whole
from resnet_dist.recipe.schema import Recipe

_LARGEST_PADDING = 65_536  # MiB
SOURCE_NAMES = ("imagefolder", "webdataset", "parquet", "packed", "synthetic")

VALUES: Values = (
    ("data.resolution", *whole(8, LARGEST_IMAGE)),
    ("data.cache.max_gib", *ABOVE_0),
    ("data.dali.hw_decoder_load", lambda part: 0 <= part <= 1, "a fraction of the images, from 0 to 1"),
    ("data.dali.device_padding_mib", *whole(0, _LARGEST_PADDING)),
    ("data.dali.host_padding_mib", *whole(0, _LARGEST_PADDING)),
    ("data.shuffle_window", *whole(1)),
    (
        "data.progressive",
        lambda parts: all(8 <= resolution <= LARGEST_IMAGE for resolution in parts.values()),
        f"times, each with a resolution from 8 to {LARGEST_IMAGE}",
    ),
    (
        "data.max_bad_images",
        lambda part: 0 < part < 1 or (isinstance(part, int) and 0 <= part <= LARGEST_COUNT),
        "a number of images (a whole number), or a fraction above 0 and below 1",
    ),
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

_OF_FILES = ("classes", "decoder", "exif", "on_error", "known_bad", "prefetch")

_OF_DALI = ("hw_decoder_load", "device_padding_mib", "host_padding_mib", "affinity")
_ADDRESS = "an address such as s3://bucket/folder"

USES: Uses = (
    *((f"data.{key}", lambda r: r.data.source != "synthetic", "data.source", "that has files") for key in _OF_FILES),
    *((f"data.cache.{key}", lambda r: is_address(r.data.root), "data.root", _ADDRESS) for key in ("folder", "max_gib")),
    *(
        (f"data.dali.{key}", lambda r: r.data.decoder != "torchvision", "data.decoder", "auto or dali")
        for key in _OF_DALI
    ),
    ("data.shuffle_window", lambda r: r.data.order == "shards", "data.order", "shards"),
    ("data.max_bad_images", lambda r: r.data.on_error == "replace", "data.on_error", "replace"),
    ("data.image_key", lambda r: r.data.source == "parquet", "data.source", "parquet"),
    ("data.label_key", lambda r: r.data.source in ("parquet", "webdataset"), "data.source", "parquet or webdataset"),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the source of the images."""
    yield from one_of("data.source", recipe.data.source, SOURCE_NAMES)
    num_samples, subset = recipe.data.num_samples, recipe.data.subset
    if recipe.data.source == "synthetic":
        if num_samples is None:
            found = "is not given, and data.source: synthetic has no images to count"
            yield RecipeError("data.num_samples", found, "the number of training images", ("data.source",))
        if recipe.data.root:
            found = f'found "{recipe.data.root}", and data.source: synthetic reads no files'
            allowed = """leave it out; on the command line: 'data.root=""'"""
            yield RecipeError("data.root", found, allowed, ("data.source",))
    elif not recipe.data.root:
        yield RecipeError("data.root", "is not given", "the folder or address of the data set", ("data.source",))
    if num_samples is not None and isinstance(subset, int) and subset > num_samples:
        found = f"found {subset}, and the training split has {num_samples} images (data.num_samples)"
        yield RecipeError("data.subset", found, f"at most {num_samples}, or leave it out", ("data.num_samples",))

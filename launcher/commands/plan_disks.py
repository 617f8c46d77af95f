"""What a run asks of the disks with its images: a line of `launcher plan`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from resnet_dist.data.index.table import Index
    from resnet_dist.data.sources.listing import Listing

IMAGENET_BYTES = 147_897_477_120 / 1_281_167  # ILSVRC2012_img_train.tar, its bytes and images
_SAMPLED = 1000  # files whose sizes are read


def image_bytes(data: DataRecipe, found: Listing | Index | None) -> float | None:
    """The mean size of an encoded training image, of what is listed; of files, from some of them. None if unknown."""
    if found is None:
        return None
    if len(found.num_bytes) and found.num_bytes.any():
        return float(found.num_bytes.mean())
    if found.shards:
        files, num = [f"{data.root}/{shard}" for shard in found.shards], len(found.paths)
    else:
        rows = range(0, len(found.paths), max(1, len(found.paths) // _SAMPLED))
        files, num = [f"{data.root}/{found.paths[row]}" for row in rows], len(rows)
    try:
        return sum(Path(file).stat().st_size for file in files) / num
    except OSError:
        return None


def lines(data: DataRecipe, mean_bytes: float | None, num_shards: int | None = None) -> Iterator[str]:
    """What the disks must deliver for each 1,000 images a second, and what `order: shards` does."""
    if data.source == "synthetic":
        return
    if data.order == "shards":
        blocks = "blocks of 1,000 images" if num_shards == 0 or data.source == "imagefolder" else "shards"
        parts = f"{num_shards:,} {blocks}" if num_shards else blocks
        window = f"samples are shuffled within windows of {data.shuffle_window:,}"
        yield f"  order         {parts} in random order; {window}"
    size = IMAGENET_BYTES if mean_bytes is None else mean_bytes
    origin = " (ImageNet's mean, not measured here)" if mean_bytes is None else ""
    opens = {"imagefolder": "1,000 opens/s", "parquet": "an open and a whole row group at a time"}
    take = f"1,000 images/s take {size / 1000:,.0f} MB/s, {opens.get(data.source, 'few opens')}"
    yield f"  disks         {size / 1000:,.0f} kB an image{origin}: {take}"

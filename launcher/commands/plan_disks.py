"""What a run asks of the disks with its images: lines of `launcher plan`."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.commands.plan_text import row
from launcher.planning.images import IMAGENET_BYTES
from resnet_dist.recipe.schema import DataRecipe


def lines(
    data: DataRecipe, mean_bytes: float | None, num_shards: int | None = None, images_per_s: float | None = None
) -> Iterator[str]:
    """What the disks must deliver for each 1,000 images a second and at `images_per_s`, and what `order: shards` does.

    `mean_bytes`: the mean size of an encoded training image; `num_shards`: of the training split; if they are known.
    """
    if data.source == "synthetic":
        return
    if data.order == "shards":
        blocks = "blocks of 1,000 images" if num_shards == 0 or data.source == "imagefolder" else "shards"
        parts = f"{num_shards:,} {blocks}" if num_shards else blocks
        window = f"samples are shuffled within windows of {data.shuffle_window:,}"
        yield from row("order", f"{parts} in random order; {window}")
    size = IMAGENET_BYTES if mean_bytes is None else mean_bytes
    origin = " (ImageNet's mean, not measured here)" if mean_bytes is None else ""
    opens = {"imagefolder": "1,000 opens/s", "parquet": "an open and a whole row group at a time"}
    take = f"1,000 images/s take {_rate(1000 * size)}, {opens.get(data.source, 'few opens')}"
    yield from row("disks", f"{size / 1000:,.0f} kB an image{origin}: {take}")
    if images_per_s is not None:
        yield from row("", f"{images_per_s:,.0f} images/s, as predicted, take {_rate(images_per_s * size)}")


def _rate(bytes_per_s: float) -> str:
    if bytes_per_s >= 1e9:
        return f"{bytes_per_s / 1e9:.3g} GB/s"
    return f"{bytes_per_s / 1e6:,.{0 if bytes_per_s >= 1e6 else 2}f} MB/s"

"""Our trainer fed by JPEG files, through each decoder. Requires torch, torchvision and Pillow; DALI for its row."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Run
from benchmarks.peers import OurTrainer, Setting, synthetic
from benchmarks.variants import Make, flagged, our_trainer
from resnet_dist.data import Stream, index_of
from resnet_dist.data.decoding.choice import dali_is_installed
from resnet_dist.data.decoding.region_check import region_check, warn_of
from resnet_dist.data.loader import HostBatch, decoder_for, training_batches
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe, SpeedRecipe

WIDTH, HEIGHT = 500, 375  # the most frequent size in ImageNet
_QUALITY = 92
_NOISE = 10.0  # standard deviation; gives files of 96 kB, a little less than the 110 kB of a file of ImageNet


def fed_trainers(setting: Setting, folder: Path, num_photos: int) -> tuple[dict[str, Make], dict[str, str]]:
    """Our trainer with images that are on the device, and with files of `folder`, which are written first.

    DALI decodes on the GPU (`mixed`) where there is one. The other decoder is that of `data.decoder: torchvision`, with
    a thread for each CPU. Returns also the absent ones with the reason.
    """
    write_photos(folder, num_photos)
    makers: dict[str, Make] = {"synthetic": partial(our_trainer, setting, SpeedRecipe(), synthetic(setting))}
    absent = {}
    if dali_is_installed():
        makers["DALI"] = partial(_fed, setting, folder, "dali")
    else:
        absent["DALI"] = "it is not installed (pip install nvidia-dali-cuda130)"
    makers["torchvision"] = partial(_fed, setting, folder, "torchvision")
    return makers, absent


def _fed(setting: Setting, folder: Path, decoder: str) -> Run:
    data = DataRecipe(root=str(folder), resolution=setting.resolution, decoder=decoder)  # type: ignore[arg-type]
    recipe = setting.recipe()
    recipe = replace(recipe, data=data)
    return flagged(recipe, setting.device, OurTrainer(recipe, setting.device, _batches(setting, data)))


def _batches(setting: Setting, data: DataRecipe) -> Iterator[HostBatch]:
    """Endless batches, as in a run of one worker."""
    index, check = index_of(data, "train"), region_check(data, setting.device)
    if check is not None and check.problem is not None:
        warn_of(check.problem)
    decoder = decoder_for(
        data,
        device=setting.device,
        num_threads=os.cpu_count() or 1,
        max_batch_size=setting.batch,
        regions=check is None or check.problem is None,
    )
    layout, stream = BatchLayout(size=setting.batch, world_size=1), Stream(len(index), 0)
    steps = itertools.count()
    yield from training_batches(index, files_of(index), stream, layout, 0, data, 0, decoder, steps)


def write_photos(folder: Path, num: int, split: str = "train") -> None:
    """Write folder/SPLIT/CLASS/NNNNN.jpg: made-up photos of 500 × 375 pixels, of two classes; always the same files."""

    def one(number: int) -> None:
        file = folder / split / f"class-{number % 2}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo(number))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(num)))


def photo(number: int) -> bytes:
    """A JPEG with structures of all sizes and some noise, as a photo has: it takes as long to decode as one."""
    random = np.random.default_rng(number)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for size in (4, 16, 64, 256):  # cells of a grid across the image; the finer, the weaker
        grid = Image.fromarray(random.integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8))
        fine = np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)
        pixels += (fine - 128.0) * (2.0 / size**0.5)
    pixels += random.normal(0.0, _NOISE, (HEIGHT, WIDTH, 1))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()

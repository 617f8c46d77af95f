"""The input pipelines that benchmarks/input.py compares. Each runs in a process of its own and decodes on request.

    python -m benchmarks.input_peers NAME FOLDER

reads a number of images from each line of standard input, decodes so many, and prints the CPU seconds since the last
such line as a line of JSON: a pipeline that works ahead between two turns pays for it. CPU seconds are those of the
process and of all processes that it has started.

All pipelines make random crops of 224 × 224 pixels with torchvision's distribution, flip half of them, and yield
batches of normalised float32 images: what a network takes. Pipelines of other projects are written after their
documentation; no code is copied.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

BATCH, THREADS, RESOLUTION = 32, 2, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

Batches = Iterator[int]  # the number of images in each batch, endless


def ours(folder: Path, **keys: Any) -> Batches:
    """Our input pipeline on a CPU; `keys` of `data`."""
    from resnet_dist.data import Stream, index_of
    from resnet_dist.data.augmentation import augmentation_of
    from resnet_dist.data.loader import decoder_for, normalise, training_batches
    from resnet_dist.data.storage.files import files_of
    from resnet_dist.recipe.batch_layout import BatchLayout
    from resnet_dist.recipe.schema import DataRecipe

    recipe, device = DataRecipe(root=str(folder), **keys), torch.device("cpu")
    index = index_of(recipe, "train")
    layout = BatchLayout(size=BATCH, world_size=1)
    decoder = decoder_for(recipe, device=device, num_threads=THREADS, max_batch_size=BATCH)
    augmentation = augmentation_of(recipe, seed=0, device=device, num_threads=THREADS)
    stream = Stream(len(index), 0)
    batches = training_batches(
        index, files_of(index), stream, layout, 0, recipe, 0, decoder, itertools.count(), augmentation
    )
    for batch in batches:
        yield len(normalise(batch.images, recipe.mean, recipe.std, torch.float32))


def _policy(name: str) -> Any:
    from resnet_dist.recipe.schema import AugmentationRecipe

    return AugmentationRecipe(name=name)


def dali_native(folder: Path) -> Batches:
    """DALI's own reader and its fused decoder with random crops."""
    from nvidia import dali

    pipeline = dali.Pipeline(batch_size=BATCH, num_threads=THREADS, device_id=None, seed=0, prefetch_queue_depth=2)
    fn, types = dali.fn, dali.types
    with pipeline:
        encoded, labels = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, output_type=types.RGB, random_area=_AREA, random_aspect_ratio=_ASPECT, num_attempts=10
        )
        images = fn.resize(images, size=[RESOLUTION, RESOLUTION], interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = ([255 * value for value in values] for values in (MEAN, STD))
        images = fn.crop_mirror_normalize(images, mean=mean, std=std, mirror=fn.random.coin_flip())
        pipeline.set_outputs(images, labels)
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        yield len(images)


def torchvision_folder(folder: Path, *, tensors: bool) -> Batches:
    """torchvision's ImageFolder with its transforms of PIL images, or with v2's of tensors."""
    from torchvision import datasets
    from torchvision.transforms import v2

    transform = _pil_transform()
    if tensors:
        crop = v2.RandomResizedCrop(RESOLUTION, scale=_AREA, ratio=_ASPECT, antialias=True)
        to_float = v2.ToDtype(torch.float32, scale=True)
        transform = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), to_float, v2.Normalize(MEAN, STD)])
    yield from _loaded(datasets.ImageFolder(str(folder / "train"), transform))


def timm_loader(folder: Path) -> Batches:
    """timm's data set, transform and loader, without its prefetcher to a GPU."""
    from timm.data import create_dataset, create_transform

    dataset = create_dataset("", str(folder), split="train")
    dataset.transform = create_transform(RESOLUTION, is_training=True, interpolation="bilinear", color_jitter=None)
    yield from _loaded(dataset)


def spdl_pipeline(folder: Path) -> Batches:
    """SPDL: FFmpeg decodes, crops and scales in threads."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    from resnet_dist.data.loader import normalise

    paths = sorted(str(path) for path in (folder / "train").glob("*/*.jpg"))
    random = np.random.default_rng(0)

    def shuffled() -> Iterator[str]:
        while True:
            yield from (paths[row] for row in random.permutation(len(paths)))

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        top, left, height, width = _window(packets.height, packets.width, np.random)
        flip = ",hflip" if np.random.random() < 0.5 else ""
        wanted = f"crop={width}:{height}:{left}:{top},scale={RESOLUTION}:{RESOLUTION}:flags=bilinear{flip}"
        return spdl.io.decode_packets(packets, filter_desc=f"{wanted},format=pix_fmts=rgb24")

    def together(frames: list[Any]) -> int:
        images = torch.from_numpy(spdl.io.to_numpy(spdl.io.convert_frames(frames))).permute(0, 3, 1, 2)
        return len(normalise(images, MEAN, STD, torch.float32))

    builder = PipelineBuilder().add_source(shuffled()).pipe(decode, concurrency=THREADS).aggregate(BATCH)
    pipeline = builder.pipe(together).add_sink(2).build(num_threads=THREADS)
    with pipeline.auto_stop():
        yield from pipeline


def webdataset_shards(folder: Path) -> Batches:
    """webdataset on tar shards, with torchvision's transforms of PIL images."""
    import webdataset

    shards = sorted(str(path) for path in folder.glob("train*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), resampled=False).shuffle(1000).decode("pil")
    transform = _pil_transform()
    yield from _loaded(dataset.to_tuple("jpg", "cls").map_tuple(transform, int))


def mosaic_shards(folder: Path) -> Batches:
    """MosaicML streaming on its own shards of the same files, with torchvision's transforms of PIL images."""
    from streaming import MDSWriter, StreamingDataset

    shards = folder / "mds"
    if not (shards / "index.json").exists():
        with MDSWriter(out=str(shards), columns={"jpg": "bytes", "cls": "int"}) as writer:
            for path in sorted((folder / "train").glob("*/*.jpg")):
                writer.write({"jpg": path.read_bytes(), "cls": int(path.parent.name.rpartition("-")[2])})
    transform = _pil_transform()

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Any:
            import io

            row = super().__getitem__(number)
            return transform(Image.open(io.BytesIO(row["jpg"])).convert("RGB")), row["cls"]

    yield from _loaded(Photos(local=str(shards), shuffle=True, batch_size=BATCH))


def _pil_transform() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(RESOLUTION, scale=_AREA, ratio=_ASPECT)
    to_float = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *to_float])  # type: ignore[no-any-return]


def _loaded(dataset: Any) -> Batches:
    """A data set through torch's DataLoader in this process: workers would add the cost of sending images."""
    is_iterable = isinstance(dataset, torch.utils.data.IterableDataset)
    while True:
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=None if is_iterable else True)
        for images, _ in loader:
            yield len(images)


def _window(height: int, width: int, random: Any) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop with torchvision's distribution."""
    for _ in range(10):
        area = random.uniform(*_AREA) * height * width
        ratio = np.exp(random.uniform(np.log(_ASPECT[0]), np.log(_ASPECT[1])))
        cut_width, cut_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < cut_width <= width and 0 < cut_height <= height:
            left, top = random.randint(0, width - cut_width + 1), random.randint(0, height - cut_height + 1)
            return top, left, cut_height, cut_width
    return 0, 0, height, width


PEERS: dict[str, Callable[[Path], Batches]] = {
    "ours": ours,
    "ours again": ours,
    "ours, Pillow only": lambda folder: ours(folder, decoder="torchvision"),
    "ours, 64 px": lambda folder: ours(folder, resolution=64),
    "ours, color_jitter 0.4": lambda folder: ours(folder, color_jitter=0.4),
    "ours, randaugment": lambda folder: ours(folder, augmentation=_policy("randaugment")),
    "ours, trivialaugment": lambda folder: ours(folder, augmentation=_policy("trivialaugment")),
    "ours, packed shards": lambda folder: ours(folder / "packed", source="packed"),
    "ours through DALI": lambda folder: ours(folder, decoder="dali"),
    "DALI native": dali_native,
    "DALI native again": dali_native,
    "torchvision, PIL": lambda folder: torchvision_folder(folder, tensors=False),
    "torchvision, v2": lambda folder: torchvision_folder(folder, tensors=True),
    "timm": timm_loader,
    "SPDL": spdl_pipeline,
    "webdataset": lambda folder: webdataset_shards(folder / "packed"),
    "MosaicML streaming": mosaic_shards,
}


def cpu_seconds() -> float:
    """User and system time of this process and its descendants; of the latter, running and ended, from /proc."""
    parents: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, and those of waited-for children
    waiting, total = list(parents.get(os.getpid(), [])), 0
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += parents.get(process, [])
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + total / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Serve one peer."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    batches = PEERS[name](folder)
    before = cpu_seconds()
    for line in sys.stdin:
        num, wanted = 0, int(line)
        while num < wanted:
            num += next(batches)
        now = cpu_seconds()
        print(json.dumps({"images": num, "cpu_s": now - before}), flush=True)
        before = now
    os._exit(0)  # threads of other projects may not end


if __name__ == "__main__":
    raise SystemExit(main())

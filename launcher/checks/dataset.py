"""The data set: its index or its folders can be read, and an image of each split can be decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from launcher.checks.finding import Finding, failed, graded, passed, skipped
from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.data import BatchRequest, Index, compare_classes
from resnet_dist.data.files import files_of
from resnet_dist.data.image_folder import an_image, class_names
from resnet_dist.data.image_headers import image_header
from resnet_dist.data.listing import SPLITS
from resnet_dist.data.loader import decoder_for
from resnet_dist.data.shared_index import check_indices, saved_index
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import DataRecipe


def data(config: RunConfig) -> Iterator[Finding]:
    """The index that the run would use, or else the folders, and one image of each split.

    No index is created here: that reads every header, which takes minutes for a million images, and the run does it.
    """
    if config.data.source == "synthetic":
        yield passed("data", f"{config.data.num_samples:,} random images, made on the device; no files are read")
        return
    folder = RunDirectory(Path(config.storage), config.name).index
    try:
        train, val = (saved_index(config.data, split, folder) for split in SPLITS)
        if train is not None and val is not None:
            yield from _indexed(config, train, val)
        elif config.data.source == "imagefolder":
            yield from _folders(config)
        else:
            yield skipped("data", f"{config.data.source} is your own function; it is called when the run starts")
    except (DataError, RecipeError) as error:
        yield failed("data", str(error), "repair the data or data.root; the run would end with exit code 65")


def _indexed(config: RunConfig, train: Index, val: Index) -> Iterator[Finding]:
    check_indices(config.data, config.model.num_classes, train, val)
    found = f"index of {len(train):,} train and {len(val):,} val images in {len(train.classes)} classes"
    yield passed("data", found)
    yield from _warned([*train.notes, *val.notes, *_fewer_classes(config, train.classes[: config.model.num_classes])])
    yield _decoded(config.data, [index.take(np.array([0])) for index in (train, val)])


def _folders(config: RunConfig) -> Iterator[Finding]:
    root, classes = config.data.root, class_names(config.data.root, "train")
    class_names(root, "val")
    fewer = _fewer_classes(config, classes)
    yield passed("data", f"{root}: {len(classes)} classes; the run lists and indexes the images when it starts")
    yield from _warned(fewer)
    yield _decoded(config.data, [_index_of_one(root, classes, an_image(root, split)) for split in SPLITS])


def _fewer_classes(config: RunConfig, classes: Sequence[str]) -> list[str]:
    return compare_classes(config.data.root, classes, config.model.num_classes)


def _warned(notes: Sequence[str]) -> Iterator[Finding]:
    for note in notes:
        yield graded("data", note, "no action is needed if this is intended", warn=True)


def _index_of_one(root: str, classes: tuple[str, ...], path: str) -> Index:
    header = image_header(path)
    name = str(Path(path).relative_to(root))
    label, height, width = np.zeros(1, np.int64), np.array([header.height]), np.array([header.width])
    return Index(root, classes, (name,), label, height, width, kinds=np.array([header.kind], np.uint8))


def _decoded(data: DataRecipe, samples: list[Index]) -> Finding:
    """Decode one whole image of each split on the CPU, with the run's decoder. `samples` have one sample each."""
    decoder = decoder_for(data, device=torch.device("cpu"), num_threads=1, max_batch_size=1)
    for index in samples:
        zero = np.zeros(1, np.int64)
        window = np.array([(0, 0, index.heights[0], index.widths[0])], dtype=np.int32)
        files = files_of(index, data)
        request = BatchRequest.of(index, files, zero, zero, window, np.zeros(1, np.bool_), data.resolution)
        with closing(decoder.decode(iter([request]))) as decoded:
            for error in next(decoded).errors.values():
                raise error
    shown = " and ".join(index.paths[0] for index in samples)
    return passed("sample", f"{shown} decoded to {[data.resolution] * 2} pixels")

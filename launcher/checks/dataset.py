"""The data set: its index or its folders can be read, and an image of each split can be decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from launcher.checks import shared_disks
from launcher.checks.finding import Finding, failed, graded, passed, skipped
from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.data import BatchRequest, Index, compare_classes
from resnet_dist.data.headers.image import image_header
from resnet_dist.data.index.build import build_index, check_whole, refreshed
from resnet_dist.data.index.shared import check_broken, check_indices, saved_index
from resnet_dist.data.index.table import Kind
from resnet_dist.data.loader import decoder_for
from resnet_dist.data.sources.by_name import LISTINGS, check_root
from resnet_dist.data.sources.classes import in_use, select
from resnet_dist.data.sources.image_folder import an_image, class_names
from resnet_dist.data.sources.listing import SPLITS
from resnet_dist.data.sources.packed import packed_index
from resnet_dist.data.sources.parquet import row_group_warnings
from resnet_dist.data.sources.remote_folder import an_object
from resnet_dist.data.storage.files import files_of
from resnet_dist.data.storage.remote import RemoteStorage
from resnet_dist.errors import DataError, RecipeError, StoreUnavailable
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.schema import DataRecipe


def data(config: RunConfig) -> Iterator[Finding]:
    """The index that the run would use, or else the folders, and one image of each split.

    No index is created here: that reads every header, which takes minutes for a million images, and the run does it.
    """
    if config.data.source == "synthetic":
        yield passed("data", f"{config.data.num_samples:,} random images, made on the device; no files are read")
        return
    run = RunDirectory(Path(config.storage), config.name)
    try:
        train, val = (saved_index(config.data, split, run.index, run.shared_index) for split in SPLITS)
        if train is not None and val is not None:
            yield from _indexed(config, train, val)
        elif config.data.source == "packed":
            yield from _indexed(config, *(packed_index(config.data, split) for split in SPLITS))
        elif config.data.source == "imagefolder" and is_address(config.data.root):
            yield from _objects(config)
        elif config.data.source == "imagefolder":
            yield from _folders(config)
        elif config.data.source in LISTINGS:
            check_root(config.data)
            yield passed("data", f"{config.data.root}: has shards; the run lists and indexes the images when it starts")
        else:
            yield skipped("data", f"{config.data.source} is your own function; it is called when the run starts")
    except RecipeError as error:
        yield failed("data", str(error), "correct the config; until then `launcher train` ends with exit code 78")
    except DataError as error:
        advice = "repair the data or data.root; until then `launcher train` ends with exit code 65"
        yield failed("data", str(error), advice)
    except StoreUnavailable as error:
        yield failed("data", str(error), "until it answers, `launcher train` ends with exit code 69")


def _indexed(config: RunConfig, train: Index, val: Index) -> Iterator[Finding]:
    crowded = shared_disks.warning(config.data, len(train) + len(val))
    train, val = select(config.data, train, val)
    check_indices(config.data, config.model.num_classes, train, val)
    if broken := [index.take(np.array(list(index.problems))) for index in (train, val) if index.problems]:
        check_broken(config.data, *(refreshed(index, data=config.data) for index in broken))  # if still so
    found = f"index of {len(train):,} train and {len(val):,} val images in {len(train.classes)} classes"
    yield passed("data", found)
    notes = [*train.notes, *val.notes, *_fewer_classes(config, train.classes[: config.model.num_classes])]
    notes += [*row_group_warnings(config.data, train), *([] if crowded is None else [crowded])]
    yield from _warned(notes)
    yield _decoded(config.data, [index.take(np.flatnonzero(index.kinds != Kind.BROKEN)[:1]) for index in (train, val)])


def _folders(config: RunConfig) -> Iterator[Finding]:
    root, classes = config.data.root, class_names(config.data.root, "train")
    class_names(root, "val")
    used, _ = in_use(config.data, classes)
    fewer = _fewer_classes(config, used)
    yield passed("data", f"{root}: {len(used)} classes; the run lists and indexes the images when it starts")
    yield from _warned(fewer)
    yield _decoded(config.data, [_index_of_one(root, classes, an_image(root, split)) for split in SPLITS])


def _objects(config: RunConfig) -> Iterator[Finding]:
    data, storage = config.data, RemoteStorage(config.data.root)
    samples = [build_index(an_object(storage, split), data.root, data.source) for split in SPLITS]
    used, _ = in_use(data, samples[0].classes)
    yield passed("data", f"{data.root}: {len(used)} classes; the run lists and indexes the images when it starts")
    yield from _warned(_fewer_classes(config, used))
    for index in samples:
        check_whole(index)
    yield _decoded(data, samples)


def _fewer_classes(config: RunConfig, classes: Sequence[str]) -> list[str]:
    return compare_classes(config.data.root, classes, config.model.num_classes)


def _warned(notes: Sequence[str]) -> Iterator[Finding]:
    for note in notes:
        yield graded("data", note, "no action is needed if this is intended", warn=True)


def _index_of_one(root: str, classes: tuple[str, ...], path: str) -> Index:
    header = image_header(path)
    name = str(Path(path).relative_to(root))
    label, height, width = np.zeros(1, np.int64), np.array([header.height]), np.array([header.width])
    kind, orientation = np.array([header.kind], np.uint8), np.array([header.orientation], np.uint8)
    return Index(root, classes, (name,), label, height, width, kinds=kind, orientations=orientation)


def _decoded(data: DataRecipe, samples: list[Index]) -> Finding:
    """Decode one whole image of each split on the CPU, with the run's decoder. `samples` have one sample each."""
    decoder = decoder_for(data, device=torch.device("cpu"), num_threads=1, max_batch_size=1)
    for index in [sample.with_exif(data.exif) for sample in samples]:
        zero = np.zeros(1, np.int64)
        window = np.array([(0, 0, index.heights[0], index.widths[0])], dtype=np.int32)
        files = files_of(index, data)
        request = BatchRequest.of(index, files, zero, zero, window, np.zeros(1, np.bool_), data.resolution)
        with closing(decoder.decode(iter([request]))) as decoded:
            for error in next(decoded).errors.values():
                raise error
    shown = " and ".join(index.paths[0] for index in samples)
    return passed("sample", f"{shown} decoded to {[data.resolution] * 2} pixels")

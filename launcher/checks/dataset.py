"""The data set: its index or its folders can be read, and an image of each split can be decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from launcher.checks.finding import Finding, failed, graded, passed, skipped
from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.data import BatchRequest, Index, check_labels, check_same_classes, decoder_for, is_current
from resnet_dist.data.image_headers import image_size
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import DataRecipe

_MAX_ENTRIES = 1_000  # of a folder, searched for one image
_SPLITS = ("train", "val")


def data(config: RunConfig) -> Iterator[Finding]:
    """The saved index, or else the folders, and one image of each split.

    No index is created here: that reads every header, which takes minutes for a million images, and the run does it.
    """
    folder, num_classes = RunDirectory(Path(config.storage), config.name).index, config.model.num_classes
    try:
        if all((folder / f"{split}.npz").is_file() for split in _SPLITS):
            indices = [Index.load(folder / f"{split}.npz") for split in _SPLITS]
            yield _indexed(config.data.root, num_classes, *indices)
            yield _decoded(config.data, [index.path(0) for index in indices])
        elif config.data.source == "imagefolder":
            yield from _folders(config.data, num_classes)
        else:
            yield skipped("data", f"{config.data.source} is your own function; it is called when the run starts")
    except (DataError, RecipeError) as error:
        yield failed("data", str(error), "repair the data or data.root; the run would end with exit code 65")


def _indexed(root: str, num_classes: int, train: Index, val: Index) -> Finding:
    check_same_classes(root, train.classes, val.classes)
    check_labels(train, num_classes)
    found = f"index of {len(train):,} train and {len(val):,} val images in {len(train.classes)} classes"
    if train.root == root and is_current(train):
        return passed("data", found)
    advice = "no action needed: the run reads all headers again when it starts, which takes a while"
    return graded("data", f"{found}; the folders have changed since", advice, warn=True)


def _folders(data: DataRecipe, num_classes: int) -> Iterator[Finding]:
    root = Path(data.root)
    train, val = (_class_folders(root / split) for split in _SPLITS)
    check_same_classes(data.root, train, val)
    if len(train) > num_classes:
        found = f"{root} has {len(train)} classes, the model predicts {num_classes}"
        yield failed("data", found, f"set model.num_classes={len(train)}, or use another data.root")
    else:
        yield passed("data", f"{root}: {len(train)} classes in train and val; the run indexes them when it starts")
    yield _decoded(data, [_an_image(root / "train" / train[0]), _an_image(root / "val" / val[0])])


def _class_folders(split: Path) -> list[str]:
    try:
        with os.scandir(split) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(str(split), f"cannot be read: {error.strerror}") from error
    if not names:
        raise DataError(str(split), "has no class folder")
    return names


def _an_image(folder: Path) -> str:
    """A file of a class folder that has the header of an image."""
    error = DataError(str(folder), "a class without images")
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False):
            if entry.name.startswith(".") or not entry.is_file():
                continue
            try:
                image_size(entry.path)
            except DataError as problem:
                error = problem
                continue
            return entry.path
    raise error


def _decoded(data: DataRecipe, paths: list[str]) -> Finding:
    """Decode one whole image of each split on the CPU, with the run's decoder."""
    windows = np.array([(0, 0, *image_size(path)) for path in paths], dtype=np.int32)
    request = BatchRequest(np.arange(len(paths)), np.arange(len(paths)), paths, windows, np.zeros(len(paths), np.bool_))
    decoder = decoder_for(data, device=torch.device("cpu"), num_threads=1, max_batch_size=len(paths))
    with closing(decoder.decode(iter([request]), data.resolution)) as decoded:
        _, images = next(decoded)
    return passed("sample", f"{' and '.join(paths)} decoded to {list(images.shape[2:])} pixels")

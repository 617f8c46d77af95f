"""The data set, before a GPU waits for it: its index or its folders can be read, and a sample is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from launcher.checks.finding import Check, Finding, failed, passed, skipped, warned
from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.data import Index, Request, check_labels, check_same_classes, decoder_for, is_current
from resnet_dist.data.image_headers import image_size
from resnet_dist.errors import DataError, RecipeError

_ADVICE = "mend the data or data.root; the run would end with exit code 65"
_SECONDS = 30
_ENTRIES = 1_000  # of a folder, looked at to find one image


def checks(config: RunConfig | None) -> list[Check]:
    """Skipped without a config."""
    return [Check("data", lambda: data(config), _SECONDS)]


def data(config: RunConfig | None) -> Iterator[Finding]:
    """The saved index where there is one, else the folders, and one image of each split.

    An index is not made here: reading a million headers takes minutes, and the run does it once.
    """
    if config is None:
        yield skipped("data", "no config names any")
        return
    folder = RunDirectory(Path(config.storage), config.name).index
    try:
        if all((folder / f"{split}.npz").is_file() for split in ("train", "val")):
            indices = [Index.load(folder / f"{split}.npz") for split in ("train", "val")]
            yield from _indexed(config, *indices)
            yield _decoded(config, [index.path(0) for index in indices])
        elif config.data.source == "imagefolder":
            yield from _folders(config)
        else:
            yield skipped("data", f"{config.data.source} is your own, and is asked when the run starts")
    except (DataError, RecipeError) as error:
        yield failed("data", str(error), _ADVICE)


def _indexed(config: RunConfig, train: Index, val: Index) -> Iterator[Finding]:
    check_same_classes(config.data.root, train.classes, val.classes)
    check_labels(train, config.model.num_classes)
    said = f"index of {len(train):,} train and {len(val):,} val images in {len(train.classes)} classes"
    if train.root != config.data.root or not is_current(train):
        advice = "no harm: the run reads all headers again when it starts, which takes a while"
        yield warned("data", f"{said}; the folders have changed since", advice)
    else:
        yield passed("data", said)


def _folders(config: RunConfig) -> Iterator[Finding]:
    root = Path(config.data.root)
    classes = {}
    for split in ("train", "val"):
        try:
            with os.scandir(root / split) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError as error:
            raise DataError(str(root / split), f"cannot be read: {error.strerror}") from error
        if not names:
            raise DataError(str(root / split), "has no class folder")
        classes[split] = names
    check_same_classes(str(root), classes["train"], classes["val"])
    found, predicted = len(classes["train"]), config.model.num_classes
    if found > predicted:
        said = f"{root} has {found} classes, the model predicts {predicted}"
        yield failed("data", said, f"model.num_classes={found}, or another data.root")
    else:
        yield passed("data", f"{root}: {found} classes in train and val; indexed when the run starts")
    yield _decoded(config, [_an_image(root / split / classes[split][0]) for split in ("train", "val")])


def _an_image(folder: Path) -> str:
    """A file of a class folder that has the header of an image."""
    error = DataError(str(folder), "a class without images")
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(_ENTRIES), strict=False):
            if entry.name.startswith(".") or not entry.is_file():
                continue
            try:
                image_size(entry.path)
            except DataError as found:
                error = found
                continue
            return entry.path
    raise error


def _decoded(config: RunConfig, paths: list[str]) -> Finding:
    """Decode one image of each split whole, on the CPU, as the run's decoder would."""
    sizes = [image_size(path) for path in paths]
    windows = np.array([(0, 0, *size) for size in sizes], dtype=np.int32)
    request = Request(np.zeros(len(paths), np.int64), paths, windows, np.zeros(len(paths), np.bool_))
    decoder = decoder_for(config.data, device=torch.device("cpu"), num_threads=1, max_batch_size=len(paths))
    with closing(decoder.decode(iter([request]), config.data.resolution)) as decoded:
        images = next(decoded)
    return passed("sample", f"{' and '.join(paths)} decoded to {list(images.shape[2:])} pixels")

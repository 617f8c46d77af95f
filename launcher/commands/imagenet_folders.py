"""Writes ImageNet's image folders: each split under another name first, which is changed when the split is whole.

    FOLDER/train/CLASS/*.JPEG, FOLDER/val/CLASS/*.JPEG
    FOLDER/imagenet.json         what was written: classes, images and bytes of each split
    FOLDER/.train-partial/       classes that are whole, and in .CLASS the one that is being written
    FOLDER/.val-partial/         val from a tar or a folder
    FOLDER/.val-sorting/         FOLDER/val while its images are moved into the folders of their classes
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.commands import imagenet_files
from launcher.commands.progress import Progress
from launcher.errors import UsageError
from launcher.formatting import in_bytes, listed
from resnet_dist.errors import DataError

NUM_CLASSES = 1000
NUM_IMAGES: Mapping[str, int] = {"train": 1_281_167, "val": 50_000}  # if there are 1,000 classes

_CARD = "imagenet.json"
_FINISHED = "finished.jsonl"  # in .train-partial: the classes that are whole
_AT_ONCE = 64  # images that the threads write before the next ones are read
_THREADS = 8  # a shared disk takes milliseconds to create a file
_MB = 10**6


@dataclass(frozen=True)
class Counts:
    """What a split consists of."""

    classes: int
    images: int
    bytes: int


def write_imagenet(
    folder: Path, train_tar: Path | None, val: Path | None, devkit: Path | None
) -> Iterator[str]:
    """Write the splits that are given to `folder`; yields what was done, line by line.

    `val` is the tar of the val images or a folder with them; without it, and with `devkit`, the images that lie flat in
    folder/val are moved into the folders of their classes. A split that this function has written before is kept, and
    one that was interrupted is continued. Raises DataError for wrong, damaged or incomplete files, for a folder that
    holds something else or cannot be written, and MissingPackage for a devkit without scipy.
    """
    truth = {} if devkit is None else imagenet_files.true_classes(devkit)
    if devkit is not None:
        _check_counts("val", len(set(truth.values())), len(truth), devkit)
    if val is not None and val.is_file():  # before the hours that train takes
        with imagenet_files.opened(val, "ILSVRC2012_img_val.tar") as archive:
            next(imagenet_files.images(archive, str(val)))
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if train_tar is not None:
        yield _said("train", *_once(folder, "train", lambda: _write_train(folder, train_tar, set(truth.values()))))
    if val is not None:
        yield _said("val", *_once(folder, "val", lambda: _write_val(folder, val, truth)))
    elif devkit is not None and (train_tar is None or (folder / "val").exists()):
        yield _said("val", *_sort_val(folder, truth))

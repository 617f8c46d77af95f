"""An index of image folders in torchvision's ImageFolder layout: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg.

The header of every file is read, so that broken files are found before training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_dist.data.image_headers import image_size
from resnet_dist.data.index import Index, check_same_classes
from resnet_dist.errors import DataError

Split = Literal["train", "val"]

LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, one folder per class"

# torchvision.datasets.folder.IMG_EXTENSIONS
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_THREADS = 16  # reading headers waits for the disk or the network, not for the CPU
_NAMED = 5  # files that a message lists

_log = logging.getLogger(__name__)


def index_image_folder(root: str, split: Split) -> Index:
    """Index root/split: classes are the sorted folder names, samples the sorted files of each class.

    Files with other suffixes, hidden entries and folders inside a class are left out, with one warning that counts
    them. Raises DataError, with the path, for a missing folder, no class folders, a class without images, classes that
    differ between train and val, and files that are empty, truncated or not images.
    """
    classes = _class_names(root, split)
    other: Split = "val" if split == "train" else "train"
    if (Path(root) / other).is_dir():
        pair = {split: classes, other: _class_names(root, other)}
        check_same_classes(root, pair["train"], pair["val"])

    paths: list[str] = []
    labels: list[int] = []
    ignored: list[str] = []
    # Times are taken before listing: a file added in between makes the index outdated, never silently incomplete.
    folder_times_ns = {name: _time_ns(root, name) for name in (split, *(f"{split}/{name}" for name in classes))}
    for label, name in enumerate(classes):
        files = _image_files(root, f"{split}/{name}", ignored)
        paths += files
        labels += [label] * len(files)
    if ignored:
        where, names = f"{root}/{split}", _some(sorted(ignored))
        _log.warning("%s: ignored %d entries without the suffix of an image: %s", where, len(ignored), names)

    sizes = np.array(_sizes([os.path.join(root, path) for path in paths]), dtype=np.int32)  # noqa: PTH118
    return Index(
        root=root,
        classes=tuple(classes),
        paths=tuple(paths),
        labels=np.array(labels, dtype=np.int64),
        heights=sizes[:, 0].copy(),
        widths=sizes[:, 1].copy(),
        folder_times_ns=folder_times_ns,
    )


def count_images(root: str, split: Split) -> int:
    """The number of samples in the index of root/split, from file names only. Raises DataError as for the index."""
    return sum(len(_image_files(root, f"{split}/{name}", [])) for name in _class_names(root, split))


def _class_names(root: str, split: Split) -> list[str]:
    folder = Path(root) / split
    if not folder.is_dir():
        where = Path(root)
        found = "the folder above does not exist either"
        if where.is_dir():
            found = f"{root} contains {_some(sorted(entry.name for entry in where.iterdir()))}"
        raise DataError(str(folder), f"no such folder; {LAYOUT}; {found}")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        found = _some(sorted(entry.name for entry in folder.iterdir()))
        raise DataError(str(folder), f"has no class folder; {LAYOUT}; it contains {found}")
    return names


def _image_files(root: str, folder: str, ignored: list[str]) -> list[str]:
    """Relative paths of the images of one class, sorted. Adds all other entries to `ignored`."""
    files: list[str] = []
    with os.scandir(Path(root) / folder) as entries:
        for entry in entries:
            is_image = entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and not entry.is_dir()
            (files if is_image else ignored).append(f"{folder}/{entry.name}")
    if not files:
        raise DataError(str(Path(root) / folder), f"is a class without images; known suffixes: {' '.join(_SUFFIXES)}")
    return sorted(files)


def _sizes(paths: list[str]) -> list[tuple[int, int]]:
    """(height, width) of every file. Raises one DataError for all broken files."""

    def size_or_error(path: str) -> tuple[int, int] | DataError:
        try:
            return image_size(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        results = list(pool.map(size_or_error, paths, chunksize=256))
    errors = [result for result in results if isinstance(result, DataError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "; ".join(str(error) for error in errors[:_NAMED])
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        raise DataError(errors[0].path, f"is the first of {len(errors)} broken files: {named}{more}")
    return [result for result in results if not isinstance(result, DataError)]


def _time_ns(root: str, folder: str) -> int:
    return (Path(root) / folder).stat().st_mtime_ns


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return f"{', '.join(shown[:_NAMED])}{' ...' if len(shown) > _NAMED else ''}" if shown else "nothing"

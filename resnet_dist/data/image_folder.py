"""An index from folders: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg, torchvision's ImageFolder layout.

Every file's header is read, so that a broken file is found before training and not in its third week.
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

LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, one folder a class"

# torchvision.datasets.folder.IMG_EXTENSIONS
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_THREADS = 16  # reading headers waits for the disk, most of all a network disk, and not for the CPU
_NAMED = 5  # broken files that an error names

_log = logging.getLogger(__name__)


def index_image_folder(root: str, split: Split) -> Index:
    """Index root/split: classes are the sorted folder names, samples the sorted files of each.

    DataError names the path for each of: a missing folder, no class folder, a class without images, classes that
    differ between train and val, files that are empty, cut short or no images. Other files (by suffix), hidden
    entries and folders within a class are left out, with one warning that counts them.
    """
    classes = _class_names(root, split)
    other: Split = "val" if split == "train" else "train"
    if (Path(root) / other).is_dir():
        pair = {split: classes, other: _class_names(root, other)}
        check_same_classes(root, pair["train"], pair["val"])

    paths: list[str] = []
    labels: list[int] = []
    ignored = _Ignored()
    # Times are taken before listing: a file added meanwhile makes the index out of date, never silently incomplete.
    folder_times_ns = {name: _time_ns(root, name) for name in (split, *(f"{split}/{name}" for name in classes))}
    for label, name in enumerate(classes):
        files = _image_files(root, f"{split}/{name}", ignored)
        paths += files
        labels += [label] * len(files)
    ignored.warn(f"{root}/{split}")

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
    """How many samples the index of root/split would have; only names are read. DataError as for the index."""
    ignored = _Ignored()
    return sum(len(_image_files(root, f"{split}/{name}", ignored)) for name in _class_names(root, split))


def _class_names(root: str, split: Split) -> list[str]:
    folder = Path(root) / split
    if not folder.is_dir():
        where = Path(root)
        found = "the folder above does not exist either"
        if where.is_dir():
            found = f"{root} holds {_some(sorted(entry.name for entry in where.iterdir()))}"
        raise DataError(str(folder), f"no such folder; {LAYOUT}; {found}")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        found = _some(sorted(entry.name for entry in folder.iterdir()))
        raise DataError(str(folder), f"has no class folder; {LAYOUT}; it holds {found}")
    return names


def _image_files(root: str, folder: str, ignored: _Ignored) -> list[str]:
    """Relative paths of the images of one class, sorted."""
    files = []
    with os.scandir(Path(root) / folder) as entries:
        for entry in entries:
            is_image = entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and not entry.is_dir()
            if is_image:
                files.append(f"{folder}/{entry.name}")
            else:
                ignored.add(f"{folder}/{entry.name}")
    if not files:
        raise DataError(str(Path(root) / folder), f"a class without images; known suffixes: {' '.join(_SUFFIXES)}")
    return sorted(files)


def _sizes(paths: list[str]) -> list[tuple[int, int]]:
    """(height, width) of every file; one DataError for all files that are broken."""

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


class _Ignored:
    """Counts what is left out of the index."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def add(self, path: str) -> None:
        self._paths.append(path)

    def warn(self, where: str) -> None:
        if self._paths:
            _log.warning(
                "%s: left out %d entries that are no image files by their names: %s",
                where,
                len(self._paths),
                _some(sorted(self._paths)),
            )

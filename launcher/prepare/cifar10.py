"""CIFAR-10 as an image folder, from its binary version: 50,000 + 10,000 images of 32 × 32 pixels in 10 classes.

Source: Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html describes the files: records of one byte for the
label and 3 × 32 × 32 bytes for the red, green and blue pixels, row by row. The test batch becomes val.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.prepare import folder as prepared_folder
from launcher.prepare.idx import png
from resnet_dist import input_files
from resnet_dist.errors import DataError

_DATASET = "cifar10"
_SIDE = 32  # pixels
_RECORD = 1 + 3 * _SIDE * _SIDE  # bytes
_RECORDS = 10_000  # of a file
_CLASSES = 10
_NAMES = "batches.meta.txt"
_FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "val": ("test_batch.bin",)}
_FOLDER = "cifar-10-batches-bin"  # in the archive

_HOW_TO_GET = (
    f"Name the folder of CIFAR-10's binary version with --from DIR: {_FILES['train'][0]} to {_FILES['train'][-1]}, "
    f"{_FILES['val'][0]} and {_NAMES}, as cifar-10-binary.tar.gz contains them"
)


def write_cifar10(folder: Path, source: Path | None = None) -> Path:
    """Write CIFAR-10 as PNG: 50,000 images in train and 10,000 in val, numbered in the order of the files.

    `source` is the folder of the binary version. A complete folder is kept, also without a source. DataError if there
    are no such files, if one is damaged, or if `folder` holds something else.
    """
    if source is None:
        if prepared_folder.is_complete(folder, _DATASET):
            return folder
        raise DataError(str(folder), f"is not a complete CIFAR-10. {_HOW_TO_GET}")
    place = source / _FOLDER if (source / _FOLDER).is_dir() else source
    if not place.is_dir():
        raise DataError(str(place), f"there is no such folder. {_HOW_TO_GET}")
    names = _class_names(place / _NAMES)
    splits = {split: np.concatenate([_records(place / file) for file in files]) for split, files in _FILES.items()}
    digest = hashlib.sha256(b"".join([" ".join(names).encode(), *(part.tobytes() for part in splits.values())]))

    def files() -> prepared_folder.Files:
        for split, records in splits.items():
            pixels = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
            for number, (image, label) in enumerate(zip(pixels, records[:, 0].tolist(), strict=True)):
                yield f"{split}/{names[label]}/{number:05d}.png", png(np.ascontiguousarray(image))

    return prepared_folder.write(folder, _DATASET, f"binary files, sha256 {digest.hexdigest()}", files)


def _class_names(file: Path) -> list[str]:
    """The names of the classes in the order of their labels. Raises DataError."""
    names = _content(file, 10_000).decode("utf-8", "replace").split()
    if len(names) != _CLASSES or len(set(names)) != _CLASSES or not all(re.fullmatch(r"\w[\w-]*", n) for n in names):
        found = " ".join(names[:_CLASSES])[:100]
        raise DataError(str(file), f"has {len(names)} names ({found}); expected {_CLASSES} different words, one a line")
    return names


def _records(file: Path) -> NDArray[np.uint8]:
    """The records of one file: uint8 [records, 3073]. Raises DataError."""
    expected = _RECORDS * _RECORD
    content = _content(file, expected)
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "is too long"
        found = f"it has {len(content):,} bytes; expected {expected:,}, {_RECORDS:,} records of {_RECORD:,}"
        raise DataError(str(file), f"{problem}: {found}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(_RECORDS, _RECORD)
    if records[:, 0].max() >= _CLASSES:
        first = int(np.argmax(records[:, 0] >= _CLASSES))
        found = f"record {first} has the label {records[first, 0]}; expected 0 to {_CLASSES - 1}"
        raise DataError(str(file), f"is not a file of CIFAR-10's binary version: {found}")
    return records


def _content(file: Path, at_most_bytes: int) -> bytes:
    """Up to one byte more than `at_most_bytes` of a file. Raises DataError."""
    try:
        with input_files.open_regular(file) as stream:
            return stream.read(at_most_bytes + 1)
    except FileNotFoundError as error:
        raise DataError(str(file), f"there is no such file. {_HOW_TO_GET}") from error
    except OSError as error:
        raise DataError(str(file), f"cannot be read: {error.strerror or error}") from error

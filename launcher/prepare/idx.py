"""Fashion-MNIST as an image folder, from IDX files: 60,000 + 10,000 grey images of 28 × 28 pixels in 10 classes.

Source: Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747). Debian's package dataset-fashion-mnist contains the files. The
test split becomes val. IDX is the format of MNIST (LeCun, Cortes, Burges; http://yann.lecun.com/exdb/mnist/): a magic
number, the size of each dimension as a big-endian 32-bit number, then the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from launcher.prepare import folder as prepared_folder
from resnet_dist import input_files
from resnet_dist.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# The authors' table of labels (github.com/zalandoresearch/fashion-mnist), as names of folders.
CLASSES = (
    *("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"),
)
_DATASET = "fashion-mnist"
_SIDE = 28  # pixels
_SPLITS = {"train": "train", "val": "t10k"}  # our split: how the names of its files begin
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_MAGIC_IMAGES, _MAGIC_LABELS = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, and in one
_MOST_BYTES = 1 << 30  # of a file when it is unpacked; the largest of Fashion-MNIST has 47 MB

_HOW_TO_GET = (
    "Install Debian's package (apt install dataset-fashion-mnist), or name a folder with the four IDX files, gzipped "
    "or not: --from DIR"
)


def write_fashion_mnist(folder: Path, source: Path | None = None) -> Path:
    """Write Fashion-MNIST as PNG: 60,000 images in train and 10,000 in val. The number of a file is that of its image.

    `source` is a folder with the four IDX files, each gzipped or not; the default is Debian's. A complete folder is
    kept. DataError if there are no such files, if one is damaged, or if `folder` holds something else.
    """
    if source is None and prepared_folder.is_complete(folder, _DATASET):
        return folder
    place = DEBIAN if source is None else source
    if not place.is_dir():
        raise DataError(str(place), f"there is no such folder. {_HOW_TO_GET}")
    splits = {split: _read_split(place, prefix) for split, prefix in _SPLITS.items()}
    digest = hashlib.sha256(b"".join(array.tobytes() for arrays in splits.values() for array in arrays))

    def files() -> prepared_folder.Files:
        for split, (images, labels) in splits.items():
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                yield f"{split}/{CLASSES[label]}/{number:05d}.png", png(image)

    return prepared_folder.write(folder, _DATASET, f"IDX files, sha256 {digest.hexdigest()}", files)


def png(image: NDArray[np.uint8]) -> bytes:
    """`image`, uint8 [height, width] or [height, width, 3], as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _read_split(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 [n, 28, 28] and labels uint8 [n] of one split. Raises DataError."""
    images_file, labels_file = _file(folder, f"{prefix}-{_IMAGES}"), _file(folder, f"{prefix}-{_LABELS}")
    images, labels = _read_idx(images_file, _MAGIC_IMAGES), _read_idx(labels_file, _MAGIC_LABELS)
    if images.shape[1:] != (_SIDE, _SIDE):
        found = " x ".join(map(str, images.shape[1:]))
        raise DataError(str(images_file), f"has images of {found} pixels; expected {_SIDE} x {_SIDE}")
    if len(images) != len(labels):
        raise DataError(str(labels_file), f"has {len(labels):,} labels; expected {len(images):,}, one for each image")
    if len(labels) == 0 or labels.max() >= len(CLASSES):
        found = f"the label {labels.max()}" if len(labels) else "no labels"
        raise DataError(str(labels_file), f"has {found}; expected labels from 0 to {len(CLASSES) - 1}")
    return images, labels


def _file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise DataError(str(folder), f"has no file {name} or {name}.gz. {_HOW_TO_GET}")


def _read_idx(file: Path, magic: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes. Raises DataError, with what was expected."""
    content = _unpacked(file)
    num_dimensions = magic & 0xFF
    header = 4 * (1 + num_dimensions)
    words = np.frombuffer(content[:header], dtype=">u4", count=min(header, len(content)) // 4)
    if len(words) == 0 or words[0] != magic:
        found = f"begins with {content[:4].hex() or 'nothing'}"
        raise DataError(str(file), f"is not such an IDX file: it {found}; expected {magic:08x}")
    if len(words) < 1 + num_dimensions:
        raise DataError(str(file), f"is truncated: it has {len(content)} bytes; expected a header of {header}")
    shape = [int(word) for word in words[1:]]
    expected = header
    expected += int(np.prod(shape, dtype=object))
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "is too long"
        sizes = " x ".join(map(str, shape))
        found = f"it has {len(content):,} bytes unpacked; expected {expected:,}, a header and {sizes}"
        raise DataError(str(file), f"{problem}: {found}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _unpacked(file: Path) -> bytes:
    """The content of a file, which may be gzipped. Raises DataError."""
    try:
        with input_files.open_regular(file) as packed:
            is_gzip = file.suffix == ".gz"
            with gzip.open(packed) if is_gzip else packed as stream:
                content = stream.read(_MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(str(file), f"is damaged: {error}; expected a gzip file") from error
    except OSError as error:
        raise DataError(str(file), f"cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise DataError(str(file), f"has more than {_MOST_BYTES:,} bytes; expected an IDX file of Fashion-MNIST")
    return content

"""Parquet shards as Hugging Face's `datasets` writes them: an image's bytes and its label in each row.

Source of the layout: https://huggingface.co/docs/datasets, "Image" and "ClassLabel" features: the image is a struct of
`bytes` and `path`, and the schema's metadata has the class names under the key `huggingface`.

Parquet stores rows in row groups (of 100 or 1,000 images), which can only be read whole.
"""

from __future__ import annotations

import bisect
import importlib.util
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.table import Index
from resnet_dist.data.sources import shards as shard_files
from resnet_dist.data.sources.listing import Listing, Split, Tell
from resnet_dist.data.storage.files import check_unchanged
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.errors import DataError, MissingPackage
from resnet_dist.recipe.schema import DataRecipe

IMAGE, LABEL = "image", "label"  # the defaults of data.image_key and data.label_key
CACHE_BYTES = 2 * 2**30  # of row groups; the default data.shuffle_window of ImageNet's images has 1.8e9 bytes


def list_rows(recipe: DataRecipe, split: Split, tell: Tell = lambda text: None) -> Listing:
    """The rows of the parquet files of a split. Only labels and names are read; `offsets` are row numbers.

    A sample's name is the image's own path if all have different ones, else the shard and the row. Raises
    MissingPackage without pyarrow; DataError, with the shard, for a file that is not parquet or is cut short, a column
    that is missing or of another type, a row without image, and a label that is empty or has no class name.
    """
    storage = storage_of(recipe.root, recipe)
    image_key, label_key = recipe.image_key or IMAGE, recipe.label_key or LABEL
    found = shard_files.find_shards(storage, split, ".parquet", recipe.num_samples)
    names: list[str | None] = []
    labels: list[int] = []
    counts: list[int] = []
    classes = shard_files.class_names(storage)
    for shard in found.paths:
        place = f"{recipe.root}/{shard}"
        with _errors(place), _opened(storage, shard) as file:
            _check_columns(place, file.schema_arrow, image_key, label_key)
            classes = classes or _class_label_names(file.schema_arrow, label_key)
            of_shard = _labels(place, file, label_key)
            if (row := shard_files.first_outside(of_shard, classes)) is not None:
                raise DataError(f"{place}: row {row}", shard_files.outside(of_shard[row], classes))
            names += _names(file, image_key, len(of_shard))
        labels += of_shard
        counts.append(len(of_shard))
        tell(f"{len(counts):,} of {len(found.paths):,} shards")
    if not labels:
        raise DataError(recipe.root, f"has no rows in the files *.parquet of the split {split}")
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    shard_numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    of_classes = shard_files.classes_of(labels, classes)
    return Listing(
        classes=of_classes,
        paths=_distinct(names, shard_numbers, found.paths),
        labels=labels,
        folder_times_ns=found.times_ns,
        notes=(*found.notes, *shard_files.without_images(f"{recipe.root}: {split}", labels, of_classes)),
        shards=found.paths,
        shard_numbers=shard_numbers,
        offsets=rows,
        image_key=image_key,
    )


def row_group_warnings(data: DataRecipe, train: Index) -> Iterator[str]:
    """A warning if row groups are read many times in an epoch, since those in use do not fit into memory together."""
    in_use = int(train.num_bytes.sum())
    if data.order == "shards":
        in_use = in_use // len(train) * min(data.shuffle_window, len(train))
    if not train.image_key or in_use <= CACHE_BYTES:
        return
    found = "data.order: uniform" if data.order == "uniform" else f"data.shuffle_window: {data.shuffle_window}"
    instead = "data.order: shards" if data.order == "uniform" else "a smaller window"
    yield (
        f"data.source: parquet with {found}: the images in use have {in_use / 2**30:.1f} GiB and a worker keeps "
        f"{CACHE_BYTES / 2**30:.0f} GiB, so a whole row group is read for nearly every image. Faster: {instead}, or "
        "packed shards (`launcher prepare pack`)"
    )


class ParquetFiles:
    """The images of an index of rows; see `Files`. The row groups that were used last stay in memory."""

    def __init__(self, index: Index, storage: Storage, cache_bytes: int = CACHE_BYTES) -> None:
        self._index, self._storage, self._cache_bytes = index, storage, cache_bytes
        self._shards: dict[int, _Shard] = {}
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._held_bytes = 0  # of the groups
        self._lock = threading.Lock()  # of these three; a shard and a group have their own while they are read

    def name(self, sample_id: int) -> str:
        """See `Files.name`."""
        return self._index.path(sample_id)

    def read(self, sample_id: int) -> bytes:
        """See `Files.read`."""
        number, row = int(self._index.shard_numbers[sample_id]), int(self._index.offsets[sample_id])
        with self._lock:
            shard = self._shards.setdefault(number, _Shard(self._storage, self._index.shards[number]))
        with _errors(self.name(sample_id), sample_id):
            group, row_of_group = shard.find(row)
            image = self._group(shard, number, group)[row_of_group].as_py()
        content = image["bytes"] if isinstance(image, dict) else image
        if content is None:
            raise DataError(self.name(sample_id), f"has no bytes in the column {self._index.image_key}", sample_id)
        check_unchanged(self._index, sample_id, content)
        return bytes(content)

    def _group(self, shard: _Shard, number: int, group: int) -> Any:
        """The images of a row group: a pyarrow ChunkedArray."""
        key = (number, group)
        with self._lock:
            held = self._groups.setdefault(key, _Group())
            self._groups.move_to_end(key)
        with held.lock:  # threads that want the same group wait for the first of them
            if held.images is None:
                held.images = shard.read(group, self._index.image_key)
                self._keep(key, held)
            return held.images

    def _keep(self, key: tuple[int, int], read: _Group) -> None:
        """Count a group that was read; forget those that were used longest ago, if they do not fit."""
        with self._lock:
            if self._groups.get(key) is not read:  # forgotten while it was read
                return
            read.num_bytes = int(read.images.nbytes)
            self._held_bytes += read.num_bytes
            while self._held_bytes > self._cache_bytes and len(self._groups) > 1:
                self._held_bytes -= self._groups.popitem(last=False)[1].num_bytes


class _Group:
    """The images of a row group, once they are read."""

    def __init__(self) -> None:
        self.images: Any = None
        self.num_bytes = 0
        self.lock = threading.Lock()


class _Shard:
    """A parquet file, whose footer is read once."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self._metadata: Any = None
        self._ends: list[int] = []  # of the row groups, in rows
        self._lock = threading.Lock()

    def find(self, row: int) -> tuple[int, int]:
        """The row group of a row, and the row's number in it."""
        with self._lock:
            if self._metadata is None:
                with _opened(self._storage, self._path) as file:
                    self._metadata = file.metadata
                groups = range(self._metadata.num_row_groups)
                self._ends = list(itertools.accumulate(self._metadata.row_group(group).num_rows for group in groups))
        group = bisect.bisect_right(self._ends, row)
        if group == len(self._ends):
            raise ValueError(f"the file has {self._ends[-1] if self._ends else 0:,} rows: it has changed")
        return group, row - (self._ends[group - 1] if group else 0)

    def read(self, group: int, image_key: str) -> Any:
        with _opened(self._storage, self._path, self._metadata) as file:
            column = f"{image_key}.bytes" if _is_struct(file.schema_arrow.field(image_key)) else image_key
            return file.read_row_group(group, columns=[column], use_threads=False).column(0)


@contextmanager
def _opened(storage: Storage, shard: str, metadata: Any = None) -> Iterator[Any]:
    """The shard as a pyarrow ParquetFile."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPackage("data.source", "pyarrow", "pip install 'resnet-launcher[parquet]'")
    from pyarrow import parquet

    with storage.open(shard) as stream, parquet.ParquetFile(stream, metadata=metadata) as file:
        yield file


@contextmanager
def _errors(name: str, sample_id: int | None = None) -> Iterator[None]:
    """The errors of pyarrow, which are of these two classes, as DataError."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(name, f"cannot be read as parquet ({reason}); copy the file again", sample_id) from error


def _check_columns(place: str, schema: Any, image_key: str, label_key: str) -> None:
    """Raise DataError unless both columns are there and have types that can be read."""
    from pyarrow import types

    for key, name in ((image_key, "image_key"), (label_key, "label_key")):
        if key not in schema.names:
            problem = f"has no column {key}; its columns are {', '.join(schema.names)}"
            raise DataError(place, f"{problem}. Set data.{name} to the column of the {name.removesuffix('_key')}s")
    image, label = schema.field(image_key), schema.field(label_key)
    content = image.type.field("bytes") if _is_struct(image) and "bytes" in _parts(image) else image
    if not (types.is_binary(content.type) or types.is_large_binary(content.type)):
        expected = "expected the bytes of encoded images, or a struct with them as `bytes`"
        raise DataError(place, f"column {image_key} has the type {image.type}; {expected}. Set data.image_key")
    if not types.is_integer(label.type):
        raise DataError(
            place, f"column {label_key} has the type {label.type}; expected whole numbers. Set data.label_key"
        )


def _labels(place: str, file: Any, label_key: str) -> list[int]:
    column = file.read(columns=[label_key], use_threads=False).column(0)
    labels: list[int | None] = column.to_pylist()
    if None in labels:
        raise DataError(f"{place}: row {labels.index(None)}", f"has no label in the column {label_key}")
    return [label for label in labels if label is not None]


def _names(file: Any, image_key: str, num: int) -> list[str | None]:
    """The images' own paths, as far as there are any."""
    if "path" not in _parts(file.schema_arrow.field(image_key)):
        return [None] * num
    column = file.read(columns=[f"{image_key}.path"], use_threads=False).column(0)
    return [None if image is None else image["path"] for image in column.to_pylist()]


def _distinct(names: list[str | None], shard_numbers: NDArray[np.int32], shards: Sequence[str]) -> list[str]:
    """`names` if they are all different; else the shard and the row of each sample."""
    given = [name for name in names if name]
    if len(given) == len(names) == len(set(given)):
        return given
    stems = [shard.removesuffix(".parquet") for shard in shards]
    counts = np.bincount(shard_numbers, minlength=len(stems)).tolist()
    return [f"{stem}/{row:06d}" for stem, count in zip(stems, counts, strict=True) for row in range(count)]


def _class_label_names(schema: Any, label_key: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's metadata has for the column of the labels, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_key]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    is_list = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None


def _is_struct(field: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(field.type))


def _parts(field: Any) -> list[str]:
    """The names of the parts of a struct; empty for another type."""
    return [part.name for part in field.type] if _is_struct(field) else []

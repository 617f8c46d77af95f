"""Parquet shards as Hugging Face's `datasets` writes them: an image's bytes and its label in each row.

Source of the layout: https://huggingface.co/docs/datasets, "Image" and "ClassLabel" features: the image is a struct of
`bytes` and `path`, and the schema's metadata has the class names under the key `huggingface`.

Parquet stores rows in row groups (of 100 or 1,000 images), which can only be read whole.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from resnet_dist.data import shards as shard_files
from resnet_dist.data.index import Index
from resnet_dist.data.listing import Listing, Split
from resnet_dist.data.storage import Storage, storage_of
from resnet_dist.errors import DataError, MissingPackage
from resnet_dist.recipe.schema import DataRecipe

IMAGE, LABEL = "image", "label"  # the defaults of data.image_key and data.label_key
CACHE_BYTES = 2 * 2**30  # of row groups; the default data.shuffle_window of ImageNet's images has 1.8e9 bytes
_OPEN_SHARDS = 64


def list_rows(recipe: DataRecipe, split: Split) -> Listing:
    """The rows of the parquet files of a split. Only labels and names are read; `offsets` are row numbers.

    A sample's name is the image's own path if all have different ones, else the shard and the row. Raises
    MissingPackage without pyarrow; DataError, with the shard, for a file that is not parquet or is cut short, a column
    that is missing or of another type, a row without image, and a label that is empty or has no class name.
    """
    storage = storage_of(recipe.root)
    image_key, label_key = recipe.image_key or IMAGE, recipe.label_key or LABEL
    found = shard_files.find_shards(storage, split, ".parquet")
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
    if not labels:
        raise DataError(recipe.root, f"has no rows in the files *.parquet of the split {split}")
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    shard_numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    of_classes = shard_files.classes_of(labels, classes)
    return Listing(
        classes=of_classes,
        paths=_distinct(names, shard_numbers, found.paths, rows),
        labels=labels,
        folder_times_ns=found.times_ns,
        notes=(*found.notes, *shard_files.without_images(f"{recipe.root}: {split}", labels, of_classes)),
        shards=found.paths,
        shard_numbers=shard_numbers,
        offsets=rows,
        image_key=image_key,
    )


class ParquetFiles:
    """The images of an index of rows; see `Files`. Row groups that were read last stay in memory, up to 2 GiB."""

    def __init__(self, index: Index, storage: Storage, cache_bytes: int = CACHE_BYTES) -> None:
        self._index, self._storage, self._cache_bytes = index, storage, cache_bytes
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._lock = threading.Lock()  # of the two dictionaries and of the sizes

    def name(self, sample_id: int) -> str:
        """See `Files.name`."""
        return self._index.path(sample_id)

    def read(self, sample_id: int) -> bytes:
        """See `Files.read`."""
        number, row = int(self._index.shard_numbers[sample_id]), int(self._index.offsets[sample_id])
        shard = self._shard(number)
        with _errors(self.name(sample_id), sample_id):
            group, row_of_group = shard.group_of(row)
            content = self._group(shard, number, group).images[row_of_group].as_py()
        if content is None:
            raise DataError(self.name(sample_id), "has no image: the column's value is null", sample_id)
        check_unchanged(self._index, sample_id, content)
        return bytes(content)

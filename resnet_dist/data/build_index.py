"""From a listing to an index: the header of every image is read, so that broken files are found before training."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.columns import Texts
from resnet_dist.data.files import files_of
from resnet_dist.data.image_headers import Header, header_of
from resnet_dist.data.index import Index, Kind
from resnet_dist.data.index_parts import Parts
from resnet_dist.data.listing import Listing
from resnet_dist.data.parallel import in_chunks
from resnet_dist.data.storage import storage_of
from resnet_dist.errors import DataError

# What is read about an image; see `Index`.
ROW = np.dtype(
    [
        ("heights", np.int32),
        ("widths", np.int32),
        ("kinds", np.uint8),
        ("orientations", np.uint8),
        ("num_bytes", np.int64),
        ("tails", np.uint32),
        ("times_ns", np.int64),
    ]
)
_BROKEN = (1, 1, Kind.BROKEN, 1, 0, 0, 0)
_NAMED = 5  # files that a message lists

Rows = NDArray[np.int64]
Report = Callable[[int, int], object]  # called after every few hundred images: how many are done, of how many
ReadRows = Callable[[Rows], tuple[NDArray[Any], dict[int, str]]]  # their table, and what is wrong with broken ones


def build_index(
    listing: Listing,
    root: str,
    source: str,
    *,
    report: Report = lambda done, total: None,
    parts: Path | None = None,
    known: Index | None = None,
) -> Index:
    """The index of the samples of `listing`. Broken images are in it, with `Kind.BROKEN`: `check_whole` refuses them.

    `parts`: a folder in which is saved what has been read, so that a call after an interruption continues. `known`: an
    index that has just been read; images with names that it has are not read again. Raises DataError from a storage.
    """
    num = len(listing.paths)
    sizes = {"num_bytes": listing.num_bytes, "shard_numbers": listing.shard_numbers, "offsets": listing.offsets}
    index = Index(
        root=root,
        classes=listing.classes,
        paths=Texts.of(listing.paths),
        labels=np.asarray(listing.labels, dtype=np.int64),
        heights=np.ones(num),
        widths=np.ones(num),
        folder_times_ns=listing.folder_times_ns,
        notes=listing.notes,
        source=source,
        shards=listing.shards,
        image_key=listing.image_key,
        **sizes,
    )
    saved = Parts(parts, index)
    table, problems = saved.load(ROW)
    of_parts = len(table)
    table = np.concatenate([table, np.zeros(num - of_parts, ROW)])
    todo = np.arange(of_parts, num)
    if known is not None:
        todo = _copy_known(known, index, table, problems, todo)
    for done, part in _read(index, todo, report):
        ...
    return index

"""What has been read of an index that is not complete: saved in parts, so that an interrupted start goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index import columns
from resnet_dist.data.index.table import Index

# What is read about an image, in the order of `Header`, and the time of its file; see `Index`.
COLUMNS: Mapping[str, type[np.generic]] = {
    "heights": np.int32,
    "widths": np.int32,
    "kinds": np.uint8,
    "orientations": np.uint8,
    "num_bytes": np.int64,
    "tails": np.uint32,
    "times_ns": np.int64,
}
Table = Mapping[str, NDArray[Any]]  # the columns by name


def new_table(num: int) -> Table:
    """Columns for `num` images that are to be read."""
    return {name: np.zeros(num, dtype) for name, dtype in COLUMNS.items()}


_EVERY_S = 10.0  # between two parts: an interruption costs that much

_log = logging.getLogger(__name__)


class Parts:
    """Files FIRST.safetensors in a folder, each with consecutive rows of the table that begin with row FIRST.

    They are of use for one list of images only, whose hash they contain. Several processes may write parts of the same
    list: all are right, and each part is whole.
    """

    def __init__(self, folder: Path | None, unread: Index) -> None:
        """`unread`: the index without what is read; no parts are saved without a `folder`."""
        self._folder = folder
        self._key = _key(unread) if folder is not None else ""
        self._end, self._saved_at = 0, time.monotonic()

    def load(self, table: Table, problems: dict[int, str]) -> int:
        """Put what earlier calls saved into `table` and `problems`; returns how many rows are complete, from 0 on."""
        for file in self._files():
            try:
                found, metadata = columns.read(file)
                first, num = int(file.stem), len(found["heights"])
                if metadata.get("key") != self._key or not first <= self._end < first + num:
                    continue
                for name, column in table.items():
                    column[first : first + num] = found[name]
                problems |= {int(row): str(text) for row, text in json.loads(metadata["problems"])}
                self._end = first + num
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                _log.warning("%s: cannot be read (%s); its images are read again", file, error)
        return self._end

    def save(self, table: Table, problems: dict[int, str], end: int) -> None:
        """Save the rows up to `end` that are not saved, if the last save was some time ago."""
        if self._folder is None or end <= self._end or time.monotonic() - self._saved_at < _EVERY_S:
            return
        part = {name: column[self._end : end] for name, column in table.items()}
        metadata = {"key": self._key, "problems": json.dumps([*_within(problems.items(), self._end, end)])}
        try:
            columns.write(self._folder / f"{self._end:012d}.safetensors", part, metadata)
            self._end = end
        except OSError as error:  # the index is made all the same
            found = "%s: cannot be written (%s): after an interruption, all headers would be read again"
            _log.warning(found, self._folder, error.strerror or error)
            self._folder = None
        self._saved_at = time.monotonic()

    def delete(self) -> None:
        """Delete all parts, also those of other lists."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        try:
            return [] if self._folder is None else sorted(self._folder.glob("[0-9]*.safetensors"))
        except OSError:
            return []


def _within(problems: Iterable[tuple[int, str]], first: int, end: int) -> Iterable[tuple[int, str]]:
    return ((row, text) for row, text in problems if first <= row < end)


def _key(unread: Index) -> str:
    """A hash of the list of images: of their names, places and labels, and of the times of the folders."""
    digest = hashlib.sha256(unread.fingerprint().encode())
    digest.update(json.dumps([unread.root, unread.source, unread.shards, [*unread.folder_times_ns.items()]]).encode())
    for column in (unread.shard_numbers, unread.offsets, unread.num_bytes):
        digest.update(column.tobytes())
    return digest.hexdigest()

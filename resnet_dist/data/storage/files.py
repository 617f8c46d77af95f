"""Reads the bytes of encoded images: from files of their own, or from ranges of shards."""

from __future__ import annotations

from typing import Protocol

from resnet_dist.data.headers.image import Header, header_of, tail_of
from resnet_dist.data.index.table import Index
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe


class Files(Protocol):
    """The encoded images of an index."""

    def name(self, sample_id: int) -> str:
        """The image's name for a person."""
        ...

    def read(self, sample_id: int) -> bytes:
        """The bytes of an image; called from several threads. Raises DataError, with its name, if that fails."""
        ...


class StoredFiles:
    """The images of an index in a storage.

    An image whose size or end is not what the index recorded raises DataError: its window may be outside of it.
    """

    def __init__(self, index: Index, storage: Storage) -> None:
        self._index, self._storage = index, storage

    def name(self, sample_id: int) -> str:
        """See `Files.name`."""
        return self._index.path(sample_id)

    def read(self, sample_id: int) -> bytes:
        """See `Files.read`."""
        index = self._index
        try:
            if index.shards:
                shard = index.shards[int(index.shard_numbers[sample_id])]
                offset, num_bytes = int(index.offsets[sample_id]), int(index.num_bytes[sample_id])
                version = str(index.folder_times_ns.get(shard, ""))
                content = self._storage.read(shard, offset, num_bytes, version=version)
            else:
                version = str(index.times_ns[sample_id]) if len(index.times_ns) else ""
                content = self._storage.read(index.paths[sample_id], version=version)
        except DataError as error:
            raise DataError(self.name(sample_id), error.problem, sample_id) from error
        if len(index.tails):
            check_unchanged(index, sample_id, content)
        elif index.heights[sample_id]:  # an index of a user's function; 0: images are read for the first time
            _check_pixels(index, sample_id, content)
        return content


def files_of(index: Index, data: DataRecipe | None = None) -> Files:
    """What reads the images of `index`. `data` says how what comes from an address is read ahead and cached."""
    storage = storage_of(index.root, data)
    if index.image_key:
        from resnet_dist.data.sources.parquet import ParquetFiles  # it imports this file

        return ParquetFiles(index, storage)
    return StoredFiles(index, storage)


def check_unchanged(index: Index, sample_id: int, content: bytes) -> None:
    """Raise DataError unless `content` has the size and the end that the index recorded, if it did."""
    if not len(index.tails):
        return
    recorded, found = int(index.num_bytes[sample_id]), len(content)
    if recorded in (0, found) and int(index.tails[sample_id]) == tail_of(content):
        return
    was = f"it has {found:,} bytes, not {recorded:,}" if recorded not in (0, found) else "other bytes at its end"
    raise DataError(index.path(sample_id), _changed(was), sample_id)


def _check_pixels(index: Index, sample_id: int, content: bytes) -> None:
    """Raise DataError unless an image has the height and width of the index."""
    header = header_in(content, index.path(sample_id), sample_id)
    height, width = int(index.heights[sample_id]), int(index.widths[sample_id])
    if index.orientations[sample_id] >= 5:  # the index has the size after turning it by 90 degrees
        height, width = width, height
    if (header.height, header.width) != (height, width):
        was = f"it has {header.height} x {header.width} pixels, not {height} x {width}"
        raise DataError(index.path(sample_id), _changed(was), sample_id)


def _changed(was: str) -> str:
    advice = "Restore it, or list it in data.known_bad; a new run or packing takes what is there"
    return f"has changed since it was indexed ({was}). {advice}"


def header_in(content: bytes, name: str, sample_id: int) -> Header:
    """The header of an encoded image. Raises DataError, with its name and id, if it is refused."""
    try:
        return header_of(name, len(content), lambda num, offset: content[offset : offset + num])
    except DataError as error:
        raise DataError(name, error.problem, sample_id) from error

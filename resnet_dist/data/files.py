"""Reads the bytes of encoded images: from files of their own, or from ranges of shards."""

from __future__ import annotations

import functools
import os
import stat
import threading
from collections import OrderedDict
from typing import Protocol

from resnet_dist.data.image_headers import tail_of
from resnet_dist.data.index import Index
from resnet_dist.errors import DataError

_OPEN_SHARDS = 64  # descriptors that a process keeps


class Files(Protocol):
    """The encoded images of an index."""

    def name(self, sample_id: int) -> str:
        """The image's name for a person."""
        ...

    def read(self, sample_id: int) -> bytes:
        """The bytes of an image; called from several threads. Raises DataError, with its name, if that fails."""
        ...


class LocalFiles:
    """The images of an index on a file system.

    An image whose size or end is not what the index recorded raises DataError: its window may be outside of it.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._descriptors: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, sample_id: int) -> str:
        """See `Files.name`."""
        return self._index.path(sample_id)

    def read(self, sample_id: int) -> bytes:
        """See `Files.read`."""
        try:
            content = self._range(sample_id) if self._index.shards else _whole(self._index.path(sample_id))
        except OSError as error:
            raise DataError(self.name(sample_id), f"cannot be read: {error.strerror}", sample_id) from error
        check_unchanged(self._index, sample_id, content)
        return content

    def _range(self, sample_id: int) -> bytes:
        index = self._index
        shard = self._shard(int(index.shard_numbers[sample_id]))
        return os.pread(shard.descriptor, int(index.num_bytes[sample_id]), int(index.offsets[sample_id]))

    def _shard(self, number: int) -> _Shard:
        """The open shard `number`. It is closed when nothing uses it any more, long after other shards were opened."""
        with self._lock:
            shard = self._descriptors.pop(number, None)
            if shard is None:
                shard = _Shard(os.path.join(self._index.root, self._index.shards[number]))  # noqa: PTH118
                if len(self._descriptors) >= _OPEN_SHARDS:
                    self._descriptors.popitem(last=False)
            self._descriptors[number] = shard
            return shard


class _Shard:
    """A file that is closed when the last thread that reads it has ended."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def files_of(index: Index) -> Files:
    """What reads the images of `index`."""
    return LocalFiles(index)


def check_unchanged(index: Index, sample_id: int, content: bytes) -> None:
    """Raise DataError unless `content` has the size and the end that the index recorded, if it did."""
    if not len(index.tails):
        return
    recorded, found = int(index.num_bytes[sample_id]), len(content)
    if recorded in (0, found) and int(index.tails[sample_id]) == tail_of(content):
        return
    was = f"it has {found:,} bytes, not {recorded:,}" if recorded not in (0, found) else "other bytes at its end"
    problem = f"has changed since it was indexed ({was}). Restore it, or start a run under another name"
    raise DataError(index.path(sample_id), problem, sample_id)


def _whole(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a file any more")
        return _all_bytes(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _all_bytes(descriptor: int, size: int) -> bytes:
    parts = list(iter(functools.partial(os.read, descriptor, max(size, 1)), b""))
    return parts[0] if len(parts) == 1 else b"".join(parts)

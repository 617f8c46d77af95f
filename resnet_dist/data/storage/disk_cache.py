"""A bounded folder of content that was read from far away, shared by the processes of a node.

    FOLDER/size            bytes of all entries, changed under a lock
    FOLDER/1f3/1f3a...     one entry: a header with its length and checksums, then the content

Entries are written under another name and renamed, and each 64 KiB have a checksum: what is torn, cut short or altered
is never returned. When the entries exceed the limit, or the disk is nearly full, those that were used longest ago are
deleted, whichever process wrote them. If the folder cannot be written, nothing is kept, and one warning says so.

fsspec's own caches (`filecache`, `blockcache`) do not serve here: they are not bounded in size, have no checksums, and
keep their table of contents in one file that each process rewrites.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_MAGIC = b"RDCACHE1"
_HEADER = struct.Struct("<8sQ")  # magic, length of the content; then a crc32 for each part
_PART_BYTES = 2**16
_USED_AGAIN_S = 60  # a use is recorded if the last one is longer ago
_KEPT = 0.9  # of the limit, after deleting
_LEFT_FREE = 0.05  # of the disk, for others


class DiskCache:
    """Entries by key, in `folder`, of at most `max_bytes` together. Methods may be called from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._is_writable = True
        with self._warning():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(0, "the folder belongs to another user")

    @property
    def is_writable(self) -> bool:
        """Whether entries can be added: false after a failure."""
        return self._is_writable

    def get(self, key: str, offset: int = 0, num_bytes: int | None = None) -> bytes | None:
        """`num_bytes` of an entry from `offset` on, fewer at its end; None if there is none or it is damaged there."""
        try:
            descriptor = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = _read(descriptor, offset, num_bytes)
            if found is not None and time.time() - os.fstat(descriptor).st_mtime > _USED_AGAIN_S:
                os.utime(descriptor)
            return found
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def put(self, key: str, content: bytes) -> None:
        """Add an entry, or replace it."""
        header = _header(content)
        size = len(header) + len(content)
        if not self._is_writable or size > self._max_bytes // 2:
            return
        file = self._file(key)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        with self._warning(), self._room_for(size):
            file.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                with temporary.open("xb", buffering=0) as stream:
                    for part in (header, content):
                        if stream.write(part) != len(part):
                            raise OSError(errno.ENOSPC, "the disk is full")
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def adding(self, key: str) -> Iterator[None]:
        """Hold this while an entry is fetched: other threads and processes that want it wait, then find it."""
        folder = self._file(key).parent
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        try:
            with contextlib.suppress(OSError):  # a file system without locks: it is fetched twice
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _file(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / name[:3] / name

    @contextlib.contextmanager
    def _room_for(self, num_bytes: int) -> Iterator[None]:
        """Hold the lock of the folder, after old entries were deleted if these bytes would exceed the limit."""
        with (self._folder / "size").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(32)
            total = int(text) if text.isdigit() else sum(size for _, size, _ in self._entries())
            disk = os.statvfs(self._folder)
            free = (disk.f_bavail - disk.f_blocks * _LEFT_FREE) * disk.f_frsize
            limit = min(self._max_bytes, total + int(free))
            if total + num_bytes > limit:
                total = self._delete_oldest(int(limit * _KEPT) - num_bytes)
                if total + num_bytes > limit:
                    raise OSError(errno.ENOSPC, "the disk is full")
            file.truncate(0)
            file.write(b"%d" % (total + num_bytes))
            file.flush()
            yield

    def _delete_oldest(self, max_bytes: int) -> int:
        """Delete entries until the rest has at most `max_bytes`; return what it has."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108  there may be a million
            total -= size
        return total

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """When each entry was used, its size, and its path. What a killed process left unfinished is an entry, too."""
        with os.scandir(self._folder) as folders:
            for folder in folders:
                if folder.is_dir(follow_symlinks=False):
                    with os.scandir(folder) as files:
                        for file in files:
                            with contextlib.suppress(FileNotFoundError):
                                status = file.stat(follow_symlinks=False)
                                yield status.st_mtime_ns, status.st_size, file.path

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """Turn the cache off, with one warning, if the block raises OSError."""
        try:
            yield
        except OSError as error:
            with self._lock:
                is_first, self._is_writable = self._is_writable, False
            if is_first:
                problem = error.strerror or str(error)
                _log.warning("data.cache.folder: %s: %s; data is read without a cache now", self._folder, problem)


def _header(content: bytes) -> bytes:
    view = memoryview(content)
    sums = [zlib.crc32(view[start : start + _PART_BYTES]) for start in range(0, len(content), _PART_BYTES)]
    return _HEADER.pack(_MAGIC, len(content)) + struct.pack(f"<{len(sums)}I", *sums)


def _read(descriptor: int, offset: int, num_bytes: int | None) -> bytes | None:
    """A range of an open entry; None if the entry is cut short, or altered in this range."""
    magic, length = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
    num_parts = -(-length // _PART_BYTES)
    start = _HEADER.size + 4 * num_parts  # of the content
    if magic != _MAGIC or os.fstat(descriptor).st_size != start + length:
        return None
    end = length if num_bytes is None else min(length, offset + num_bytes)
    if offset >= end:
        return b""
    first, last = offset // _PART_BYTES, -(-end // _PART_BYTES)
    sums = struct.unpack(f"<{last - first}I", os.pread(descriptor, 4 * (last - first), _HEADER.size + 4 * first))
    read_from = first * _PART_BYTES
    content = os.pread(descriptor, min(length, last * _PART_BYTES) - read_from, start + read_from)
    view = memoryview(content)
    for number, checksum in enumerate(sums):
        if zlib.crc32(view[number * _PART_BYTES : (number + 1) * _PART_BYTES]) != checksum:
            return None
    return content if len(content) == end - offset else content[offset - read_from : end - read_from]

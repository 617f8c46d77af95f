"""Files below an address such as s3://bucket/folder: ranges are read through fsspec and kept in a cache on the node.

Requests are made from many threads; the store's library runs them in one of its own. Do not use a storage in a process
that was forked after its first request.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import itertools
import logging
import math
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from resnet_dist.data.storage.disk_cache import DiskCache
from resnet_dist.data.storage.local import HIDDEN, Entry, SayLeftOut
from resnet_dist.errors import DataError, StoreUnavailable
from resnet_dist.object_stores import open_for_reading, refuses_access, text_of
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

KEY = "data.root"  # in the config
BLOCK_BYTES = 4 * 2**20  # of a read-ahead: a request's latency of 30 ms is small against its time on 1 Gbit/s
PATIENCE_S = 180.0  # for a store that has answered before; below faults.hang_timeout_s
FIRST_PATIENCE_S = 20.0  # for one that has not: its address may be wrong
_TOLD_AGAIN_S = 60.0  # a store that fails now and then has a line in the log this often
_PAUSES_S = (0.5, 20.0)  # before the first and the last tries; doubled in between
# What tells versions of an object apart, as the libraries name it (S3, GCS, Azure, Hugging Face, files, memory).
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "mtime", "created", "last_modified")
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError)


class RemoteStorage:
    """The files below an address.

    Samples are read by their exact ranges. Under `data.order: shards`, and in `open`, blocks of 4 MiB are read, since
    their neighbours are needed soon; blocks need the cache. With several nodes, each node reads all blocks.
    """

    def __init__(self, root: str, data: DataRecipe | None = None) -> None:
        self.root = root.rstrip("/")
        self._files, self._path = open_for_reading(KEY, root)
        self._cache = None if data is None else _cache_of(data)
        self._reads_blocks = data is not None and data.order == "shards"
        self._lock = threading.Lock()
        self._has_answered = False
        self._silent_since_s = math.inf  # the first failure after the last answer
        self._told_s = -math.inf

    def entries(
        self, folder: str = "", *, deep: bool = False, left_out: SayLeftOut = lambda reason, path: None
    ) -> list[Entry]:
        """See `Storage.entries`."""
        base = self._absolute(folder)

        def listed() -> list[dict[str, Any]]:
            everything = list(self._files.find(base, detail=True).values()) if deep else []
            return everything or cast("list[dict[str, Any]]", self._files.ls(base, detail=True))  # raises if missing

        infos = self._answer(folder, listed)
        found, kept = [info for info in infos if info["type"] == "file" and info["name"][-1] != "/"], []
        shown = folder.count("/") + 1 if folder else 0  # parts of the folder itself may begin with a dot
        for entry in (_entry(info, self._path) for info in found):
            if any(part.startswith(".") for part in entry.path.split("/")[shown:]):
                left_out(HIDDEN, entry.path)
            else:
                kept.append(entry)
        return sorted(kept)

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, sorted, without those that begin with a dot.

        Raises DataError if the folder is missing.
        """
        found = self._answer(folder, lambda: self._files.ls(self._absolute(folder), detail=True))
        names = (info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")
        return sorted(name for name in names if not name.startswith("."))

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None, *, version: str = "") -> bytes:
        """See `Storage.read`."""
        if not version or self._cache is None:
            return self._fetch(path, offset, num_bytes)
        if num_bytes is None or not self._reads_blocks:
            return self._cached(self._cache, path, offset, num_bytes, version)
        return b"".join(self._blocks(self._cache, path, offset, offset + num_bytes, version))

    def open(self, path: str) -> BinaryIO:
        """See `Storage.open`. Blocks are read ahead, and kept in the cache."""
        info = self._answer(path, lambda: self._files.info(self._absolute(path)))
        if info["type"] != "file":
            raise DataError(self._address(path), "cannot be read: it is not a file")
        entry = _entry(info, self._path)
        return io.BufferedReader(_RemoteFile(self, path, entry.num_bytes, str(entry.time_ns)), BLOCK_BYTES)

    def read_block(self, path: str, start: int, end: int, version: str) -> bytes:
        """Bytes from `start` to `end` of one block of a file, through the cache if there is one."""
        if self._cache is None:
            return self._fetch(path, start, end - start)
        return b"".join(self._blocks(self._cache, path, start, end, version))

    def _blocks(self, cache: DiskCache, path: str, start: int, end: int, version: str) -> list[bytes]:
        """The bytes from `start` to `end`: a part from each block. Blocks that are not in the cache are read whole."""
        parts = []
        for block, first, last in _parts(start, end):
            key = self._key(path, block, BLOCK_BYTES, version)
            found = cache.get(key, first - block, last - first)
            if found is None and cache.is_writable:
                with cache.adding(key):
                    found = cache.get(key, first - block, last - first)
                    if found is None:
                        content = self._fetch(path, block, BLOCK_BYTES)
                        cache.put(key, content)
                        found = content[first - block : last - block]
            parts.append(self._fetch(path, first, last - first) if found is None else found)
        return parts

    def _cached(self, cache: DiskCache, path: str, offset: int, num_bytes: int | None, version: str) -> bytes:
        """An exact range: from blocks or a range in the cache, or else from the store."""
        if num_bytes is not None:
            blocks = (
                cache.get(self._key(path, block, BLOCK_BYTES, version), first - block, last - first)
                for block, first, last in _parts(offset, offset + num_bytes)
            )
            parts = [part for part in itertools.takewhile(lambda part: part is not None, blocks) if part]
            if sum(map(len, parts)) == num_bytes:
                return b"".join(parts)
        key = self._key(path, offset, num_bytes, version)
        found = cache.get(key)
        if found is None:
            found = self._fetch(path, offset, num_bytes)
            cache.put(key, found)
        return found

    def _fetch(self, path: str, offset: int, num_bytes: int | None) -> bytes:
        """A range, from the store."""
        end = None if num_bytes is None else offset + num_bytes
        if end is not None and end <= offset:
            return b""
        absolute = self._absolute(path)

        def content() -> bytes:
            try:
                return cast("bytes", self._files.cat_file(absolute, start=offset, end=end))
            except OSError as error:
                # S3 refuses ranges that begin at or after the end; a file has none there.
                if error.errno == errno.EINVAL and self._files.info(absolute)["size"] <= offset:
                    return b""
                raise

        return self._answer(path, content)

    def _answer(self, path: str, request: Callable[[], _T]) -> _T:
        """The result of a request, tried again for some time after errors that may pass.

        All threads give up together if none of them gets an answer. Raises DataError for what does not exist or cannot
        be asked for, and StoreUnavailable.
        """
        first_s, pause_s = math.inf, _PAUSES_S[0]
        while True:
            try:
                answer = request()
                self._has_answered, self._silent_since_s = True, math.inf
                return answer
            except Exception as error:  # the libraries' error classes have no common base
                self._raise_final(path, error)
                now_s = time.monotonic()
                self._silent_since_s = min(self._silent_since_s, now_s)
                first_s = min(first_s, self._silent_since_s)
                patience_s = PATIENCE_S if self._has_answered else FIRST_PATIENCE_S
                if now_s - first_s + pause_s > patience_s:
                    tried = f"does not answer ({text_of(error)}); tried for {now_s - first_s:.0f} s"
                    advice = "Check the network, the address and the endpoint (for S3: AWS_ENDPOINT_URL)"
                    raise StoreUnavailable(self._address(path), f"{tried}. {advice}") from error
                self._note_away(path, error, patience_s)
                time.sleep(pause_s * random.uniform(0.5, 1.0))  # not all workers at once
                pause_s = min(2 * pause_s, _PAUSES_S[1])

    def _raise_final(self, path: str, error: Exception) -> None:
        """Raise the error of the data plane for one that does not pass."""
        address = self._address(path)
        if refuses_access(error):
            problem = f"access is refused ({text_of(error)}). The workers need credentials that may list and read it"
            where = "in their environment (for S3: AWS_ACCESS_KEY_ID and others), in the file of the store's client"
            public = "for a public bucket set FSSPEC_S3_ANON=true"
            advice = f"{problem}: {where}, or as the role of the machine; {public}"
            raise StoreUnavailable(address, advice) from error
        is_invalid = type(error).__name__ == "ParamValidationError"  # botocore's: a bucket's name
        if isinstance(error, _FINAL) or is_invalid or getattr(error, "errno", None) == errno.EINVAL:
            problem = "there is no such object or bucket" if isinstance(error, FileNotFoundError) else "cannot be read"
            is_told = isinstance(error, FileNotFoundError) and str(error).strip("/") in address  # it is the path alone
            raise DataError(address, problem if is_told else f"{problem} ({text_of(error)})") from error

    def _note_away(self, path: str, error: Exception, patience_s: float) -> None:
        with self._lock:
            now_s = time.monotonic()
            is_new = now_s - self._told_s > _TOLD_AGAIN_S
            self._told_s = now_s if is_new else self._told_s
        if is_new:
            _log.warning("%s: %s; tried again for up to %.0f s", self._address(path), text_of(error), patience_s)

    def _absolute(self, path: str) -> str:
        return f"{self._path}/{path}" if path else self._path

    def _address(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _key(self, path: str, offset: int, num_bytes: int | None, version: str) -> str:
        return f"{self._address(path)}\n{version}\n{offset}\n{num_bytes}"


def _parts(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(start of the block, first byte, end) of the part of a range in each block."""
    while start < end:
        block = start // BLOCK_BYTES * BLOCK_BYTES
        yield block, start, min(end, block + BLOCK_BYTES)
        start = block + BLOCK_BYTES


class _RemoteFile(io.RawIOBase):
    """A file for a library that reads and seeks. Each read ends with a block, so a buffer of that size reads blocks."""

    def __init__(self, storage: RemoteStorage, path: str, num_bytes: int, version: str) -> None:
        self._read_block = functools.partial(storage.read_block, path, version=version)
        self._num_bytes, self._offset = num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._num_bytes}[whence]
        self._offset = max(0, start + offset)
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        block_end = (self._offset // BLOCK_BYTES + 1) * BLOCK_BYTES
        end = min(self._offset + len(buffer), block_end, self._num_bytes)
        content = self._read_block(self._offset, end) if end > self._offset else b""
        buffer[: len(content)] = content
        self._offset += len(content)
        return len(content)


def _entry(info: dict[str, Any], root: str) -> Entry:
    """An object as a store's library describes it."""
    version = next((str(info[name]) for name in _VERSIONS if info.get(name) is not None), "")
    digest = hashlib.sha256(f"{info['size']} {version}".encode()).digest()
    path = info["name"].removeprefix(root).lstrip("/")
    return Entry(path, int(info["size"]), int.from_bytes(digest[:8], "little") >> 1)


def _cache_of(data: DataRecipe) -> DiskCache:
    """The cache of this user on this node."""
    above = Path(data.cache.folder or tempfile.gettempdir())
    return DiskCache(above / f"resnet-launcher-data-{os.getuid()}", int(data.cache.max_gib * 2**30))

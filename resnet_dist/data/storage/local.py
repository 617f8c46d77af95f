"""Where a data set is: files below a folder, or below an address such as s3://bucket/folder."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from resnet_dist.errors import DataError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_OPEN_FILES = 64  # descriptors that a process keeps
# Errors of network file systems and disks that may pass: a server that restarts, a path that fails over.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EAGAIN})
_PAUSES_S = (0.1, 1.0, 5.0)  # before reading again


class Entry(NamedTuple):
    """A file: its path relative to the root, with forward slashes, its size in bytes, and its modification time.

    Below an address, `time_ns` is a number made from the object's version, such as its ETag: it changes when the object
    is written again.
    """

    path: str
    num_bytes: int
    time_ns: int


class Storage(Protocol):
    """Reads the files below a root. Methods may be called from several threads.

    They raise DataError, with the path, for what is missing or cannot be read; for an address also StoreUnavailable.
    """

    root: str

    def entries(self, folder: str = "", *, deep: bool = False) -> list[Entry]:
        """All files in a folder of the root, sorted by path. `deep`: also those in the folders in it.

        Left out are files and folders whose name begins with a dot, folders lost+found, and what is neither a file nor
        a link to one.
        """
        ...

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None, *, version: str = "") -> bytes:
        """`num_bytes` of a file from `offset` on, fewer at its end; None: up to its end.

        `version` is any text that differs between the contents that the path may have had: with it, bytes that come
        from an address are kept in the local cache.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """A file for reading and seeking, for libraries that want one. Its methods may also raise OSError."""
        ...


def storage_of(root: str, data: DataRecipe | None = None) -> Storage:
    """What reads the files below `root`, a folder or an address. `data` describes the local cache of an address.

    Raises MissingPackage or RecipeError for an address that cannot be used.
    """
    if is_address(root):
        from resnet_dist.data.storage.remote import RemoteStorage  # it imports this file

        return RemoteStorage(root, data)
    return LocalStorage(str(Path(root)))


class LocalStorage:
    """A folder on a file system. Files that are read in parts stay open. Nothing is written."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def entries(self, folder: str = "", *, deep: bool = False) -> list[Entry]:
        """See `Storage.entries`. Links to folders are followed; a folder is listed once."""
        found: list[Entry] = []
        waiting, seen = [folder], set()
        while waiting:
            current = waiting.pop()
            identity, files, folders = self._retried(current, functools.partial(self._listed, current))
            if identity not in seen:
                seen.add(identity)
                found += files
                waiting += folders if deep else []
        return sorted(found)

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None, *, version: str = "") -> bytes:
        """See `Storage.read`."""
        return self._retried(path, lambda: self._read(path, offset, num_bytes))

    def open(self, path: str) -> BinaryIO:
        """See `Storage.open`."""
        return self._retried(path, lambda: io.BufferedReader(io.FileIO(_open_file(self._absolute(path)))))

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path)  # noqa: PTH118  Path objects are slow

    def _listed(self, folder: str) -> tuple[tuple[int, int], list[Entry], list[str]]:
        """What identifies a folder, its files and its folders."""
        files, folders, absolute = [], [], self._absolute(folder)
        status = Path(absolute).stat()
        with os.scandir(absolute) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith(".") or entry.name == "lost+found":  # the latter cannot be read
                    continue
                if entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    found = entry.stat()
                    files.append(Entry(path, found.st_size, found.st_mtime_ns))
        return (status.st_dev, status.st_ino), files, folders

    def _read(self, path: str, offset: int, num_bytes: int | None) -> bytes:
        if num_bytes is not None:
            file = self._opened(path)  # this name keeps it open while it is read
            return b"".join(_parts(file.descriptor, offset, num_bytes))
        with _File(self._absolute(path)) as file:
            size = os.fstat(file.descriptor).st_size
            return b"".join(_parts(file.descriptor, offset, size - offset + 1))  # one more: it may have grown

    def _opened(self, path: str) -> _File:
        """The open file. It is closed when nothing uses it any more, long after others were opened."""
        with self._lock:
            file = self._files.pop(path, None) or _File(self._absolute(path))
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)
            self._files[path] = file
            return file

    def _retried(self, path: str, action: Callable[[], _T]) -> _T:
        """The result of `action`, tried again after errors that may pass. Raises DataError with the path."""
        pauses_s = list(_PAUSES_S)
        while True:
            try:
                return action()
            except OSError as error:
                problem, may_pass = error.strerror or str(error), error.errno in _PASSING
                if not may_pass or not pauses_s:
                    tried = f" ({len(_PAUSES_S) + 1} times)" if may_pass else ""
                    raise DataError(self._absolute(path), f"cannot be read{tried}: {problem}") from error
                with self._lock:
                    self._files.pop(path, None)  # a stale descriptor stays stale
                _log.warning("%s: %s; it is read again in %g s", self._absolute(path), problem, pauses_s[0])
                time.sleep(pauses_s.pop(0))


class _File:
    """A descriptor that is closed when the last thread that reads it has ended."""

    def __init__(self, path: str) -> None:
        self.descriptor = _open_file(path)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor, once."""
        descriptor, self.descriptor = getattr(self, "descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)


def _open_file(path: str) -> int:
    """A descriptor of a file. Raises OSError, also if it is something else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a file", path)
    return descriptor


def _parts(descriptor: int, offset: int, num_bytes: int) -> Iterator[bytes]:
    """The bytes of a range, fewer at the end of the file, in as few parts as the system allows."""
    while num_bytes > 0 and (part := os.pread(descriptor, num_bytes, offset)):
        yield part
        offset, num_bytes = offset + len(part), num_bytes - len(part)

"""Where a data set is: files below a folder."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

_OPEN_FILES = 64  # descriptors that a process keeps


class Entry(NamedTuple):
    """A file: its path relative to the root, with forward slashes, its size in bytes, and its modification time."""

    path: str
    num_bytes: int
    time_ns: int


class Storage(Protocol):
    """Reads the files below a root. Methods may be called from several threads; they raise DataError with the path."""

    root: str

    def entries(self) -> list[Entry]:
        """All files that are directly in the root, sorted by path. Hidden files are left out."""
        ...

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None) -> bytes:
        """`num_bytes` of a file from `offset` on, fewer at its end; None: up to its end."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file for reading and seeking, for libraries that want one."""
        ...


class LocalStorage:
    """A folder on a file system. Files that are read in parts stay open."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """See `Storage.entries`."""
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    status = entry.stat()
                    found.append(Entry(entry.name, status.st_size, status.st_mtime_ns))
        return sorted(found)

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None) -> bytes:
        """See `Storage.read`."""
        if num_bytes is None:
            with _File(self._absolute(path)) as file:
                return _rest(file.descriptor, offset)
        return os.pread(self._opened(path).descriptor, num_bytes, offset)

    def open(self, path: str) -> BinaryIO:
        """See `Storage.open`."""
        return io.BufferedReader(io.FileIO(self._absolute(path)))

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path)  # noqa: PTH118  Path objects are slow

    def _opened(self, path: str) -> _File:
        """The open file. It is closed when nothing uses it any more, long after others were opened."""
        with self._lock:
            file = self._files.pop(path, None) or _File(self._absolute(path))
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)
            self._files[path] = file
            return file


class _File:
    """A descriptor that is closed when the last thread that reads it has ended."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError(0, "it is not a file", path)

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


def _rest(descriptor: int, offset: int) -> bytes:
    """All bytes from `offset` on, with one read if the file does not grow meanwhile."""
    size = max(1, os.fstat(descriptor).st_size - offset + 1)
    parts = []
    while part := os.pread(descriptor, size, offset):
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def storage_of(root: str) -> Storage:
    """What reads the files below `root`."""
    return LocalStorage(str(Path(root)))

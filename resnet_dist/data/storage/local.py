"""Where a data set is: files below a folder, or below an address such as s3://bucket/folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import resource
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from resnet_dist.data.names import why
from resnet_dist.errors import DataError, StoreUnavailable
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_OPEN_FILES = 2048  # descriptors that a storage keeps; ImageNet has 580 shards of 256 MB
_FEW_FILES = 64  # the same, before the limit of this process is looked at
_PART_OF_LIMIT = 4  # of the descriptors that the system allows a process, at most one of so many
# Errors of network file systems and disks that may pass: a server that restarts, a path that fails over.
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EAGAIN})
_PAUSES_S = (0.1, 1.0, 5.0)  # before reading again

# What a listing leaves out, as a note names it.
HIDDEN = "hidden files or folders"
RECOVERED = "folders of the file system's own repairs"
NO_FILE = "what is neither a file nor a folder"
SayLeftOut = Callable[[str, str], object]  # called with one of these, and the path


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

    They raise DataError, with the path, for what is missing or cannot be read, and StoreUnavailable for an address or a
    file system that stays away.
    """

    root: str

    def entries(
        self, folder: str = "", *, deep: bool = False, left_out: SayLeftOut = lambda reason, path: None
    ) -> list[Entry]:
        """All files in a folder of the root, sorted by path. `deep`: also those in the folders in it.

        Left out are files and folders whose name begins with a dot, folders lost+found, and what is neither a file nor
        a link to one; `left_out` gets each.
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
        self._most_files = _FEW_FILES

    def entries(
        self, folder: str = "", *, deep: bool = False, left_out: SayLeftOut = lambda reason, path: None
    ) -> list[Entry]:
        """See `Storage.entries`. Links to folders are followed; a folder is listed once."""
        found: list[Entry] = []
        waiting, seen = [folder], set()
        while waiting:
            current = waiting.pop()
            identity, files, folders, others = self._retried(current, functools.partial(self._listed, current))
            if identity not in seen:
                seen.add(identity)
                found += files
                waiting += folders if deep else []
                for reason, path in others:
                    left_out(reason, path)
        return sorted(found)

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None, *, version: str = "") -> bytes:
        """See `Storage.read`."""
        return self._retried(path, lambda: self._read(path, offset, num_bytes))

    def open(self, path: str) -> BinaryIO:
        """See `Storage.open`."""
        retried = functools.partial(self._retried, path)
        return io.BufferedReader(_RetriedFile(retried(lambda: _open_file(self._absolute(path))), retried))

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path)  # noqa: PTH118  Path objects are slow

    def _listed(self, folder: str) -> tuple[tuple[int, int], list[Entry], list[str], list[tuple[str, str]]]:
        """What identifies a folder, its files, its folders, and what is left out, with the reason."""
        files, folders, left_out, absolute = [], [], [], self._absolute(folder)
        status = Path(absolute).stat()
        with os.scandir(absolute) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    left_out.append((HIDDEN, path))
                elif entry.name == "lost+found":  # it cannot be read
                    left_out.append((RECOVERED, path))
                elif _leads_nowhere(entry):
                    left_out.append((NO_FILE, path))
                elif entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    found = entry.stat()
                    files.append(Entry(path, found.st_size, found.st_mtime_ns))
                else:
                    left_out.append((NO_FILE, path))
        return (status.st_dev, status.st_ino), files, folders, left_out

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
            if len(self._files) == self._most_files == _FEW_FILES:
                self._most_files = _most_files()
            while len(self._files) >= self._most_files:
                self._files.popitem(last=False)
            self._files[path] = file
            return file

    def _retried(self, path: str, action: Callable[[], _T]) -> _T:
        """The result of `action`, tried again after errors that may pass. Raises DataError or StoreUnavailable."""
        pauses_s = list(_PAUSES_S)
        while True:
            try:
                return action()
            except OSError as error:
                problem = error.strerror or str(error)
                if error.errno not in _PASSING:
                    raise DataError(self._absolute(path), f"cannot be read: {why(error)}") from error
                if not pauses_s:
                    tried = f"cannot be read ({len(_PAUSES_S) + 1} times in {sum(_PAUSES_S):.0f} s): {problem}"
                    if error.errno == errno.EIO and self._can_be_opened(path):  # so its place is there
                        raise DataError(self._absolute(path), tried) from error
                    advice = "Check the disk, or the server of the file system; if only this file fails, restore it"
                    raise StoreUnavailable(self._absolute(path), f"{tried}. {advice}") from error
                with self._lock:
                    self._files.pop(path, None)  # a stale descriptor stays stale
                _log.warning("%s: %s; it is read again in %g s", self._absolute(path), problem, pauses_s[0])
                time.sleep(pauses_s.pop(0))

    def _can_be_opened(self, path: str) -> bool:
        """Whether a file can be opened, for which a network file system asks its server."""
        try:
            os.close(_open_file(self._absolute(path)))
            return True
        except OSError:
            return False


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


class _RetriedFile(io.FileIO):
    """A file whose reads are tried again by `retried`."""

    def __init__(self, descriptor: int, retried: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__(descriptor)
        self._retried = retried

    def readinto(self, buffer: Any) -> int:
        read = super().readinto
        return int(self._retried(lambda: read(buffer)))

    def readall(self) -> bytes:
        return bytes(self._retried(super().readall))


def _most_files() -> int:
    """How many files may stay open. The limit of this process is raised for it, as far as the system allows."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_PART_OF_LIMIT * _OPEN_FILES, most)
    if limit < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            limit = wanted
    return max(1, min(_OPEN_FILES, limit // _PART_OF_LIMIT))


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to itself, or in a circle of links."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False


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

"""Durable file operations: fsync, atomic replacement, and error messages with advice."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from resnet_dist.errors import CheckpointError, StorageError

_REASONS = {
    errno.ENOENT: "is missing",
    errno.ENOSPC: "the disk is full; free some space, or lower checkpoint.keep",
    errno.EDQUOT: "the quota is used up; free some space, or lower checkpoint.keep",
    errno.EFBIG: "the file exceeds the size limit of this process (ulimit -f) or of the file system; raise the limit",
    errno.EROFS: "the file system is read-only; remount it, or choose another storage",
    errno.EACCES: "no permission; run as the folder's owner, or choose another storage",
    errno.EPERM: "no permission; run as the folder's owner, or choose another storage",
}


def reason(error: OSError) -> str:
    """Describe an OSError and, if known, what to do about it.

    >>> reason(OSError(errno.EROFS, "Read-only file system"))
    'the file system is read-only; remount it, or choose another storage'
    """
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a StorageError that names the error's file, or `path` if it has none."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(path)
        raise StorageError(named, reason(error)) from error


def make_folder(path: Path) -> None:
    """Create a folder and those above it; existing ones stay. Raises StorageError, which names what is not created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        problem = f"cannot be created: {error.strerror}. Allowed: a folder that this user can write to"
        raise StorageError(str(error.filename), problem) from error
    except OSError as error:
        raise StorageError(str(error.filename), reason(error)) from error


@contextlib.contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a CheckpointError that names `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(str(path), reason(error)) from error


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder (files created, renamed, deleted), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk. Not atomic: for files in a folder that is renamed afterwards."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_whole(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Replace the content of `path` atomically: a reader sees the old content or the new one.

    With `keep`, an existing `path` is not changed, even if another process creates it at the same time.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_synced(temporary, content)
        if keep:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(temporary)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)

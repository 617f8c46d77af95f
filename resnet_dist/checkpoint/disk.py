"""What a kill or a full disk must not tear: small files written whole, folders synced, errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from resnet_dist.errors import StorageError

_REASONS = {
    errno.ENOENT: "is missing",
    errno.ENOSPC: "the disk is full; free some space, or lower checkpoint.keep",
    errno.EDQUOT: "the quota is used up; free some space, or lower checkpoint.keep",
    errno.EFBIG: "a file grew beyond the limit of this process (ulimit -f) or of the file system; raise the limit",
    errno.EROFS: "the file system is read-only; remount it, or choose another storage",
    errno.EACCES: "no permission; run as the folder's owner, or choose another storage",
    errno.EPERM: "no permission; run as the folder's owner, or choose another storage",
}


def reason(error: OSError) -> str:
    """What went wrong with the disk and, where it is known, what to do.

    >>> reason(OSError(errno.EROFS, "Read-only file system"))
    'the file system is read-only; remount it, or choose another storage'
    """
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that names the file, or `path` where the error does not."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(path)
        raise StorageError(named, reason(error)) from error


def sync_file(path: Path) -> None:
    """Bring a file that others have written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` (files created, renamed, deleted) survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and bring it to the disk. Not atomic by itself: for files in a folder that is renamed later."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_whole(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Write `path` so that a reader finds the old content or the new, whatever happens in between.

    `keep`: where there is a `path` already, it stays, also one that another process makes at this moment.
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
    sync_folder(path.parent)

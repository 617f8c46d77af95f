"""Keeps two commands from writing to one folder at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from resnet_dist.errors import DataError


@contextlib.contextmanager
def locked(file: Path, folder: Path) -> Iterator[None]:
    """Hold a lock for `folder`. `file` is created for it, and deleted at the end.

    Raises DataError if another process holds it, and OSError if the file cannot be created.
    """
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.fstat(lock.fileno()).st_nlink > 0  # else it was deleted while it was opened here
        except BlockingIOError:
            is_held = False
        if not is_held:
            raise DataError(str(folder), "another process is writing to this folder: wait until it has ended")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink()

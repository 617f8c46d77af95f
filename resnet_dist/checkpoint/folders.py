"""Temporary folders beside the checkpoints. Their names identify the writer; those of dead writers are removed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import sync

log = logging.getLogger(__name__)

# Whether a process on another host is alive cannot be checked. Assumption: no checkpoint takes a day to write, so a
# folder that was not modified for a day is abandoned.
ABANDONED_AFTER_S = 24 * 60 * 60

_TEMPORARY = re.compile(r"\.step-[0-9]{8,}\.tmp-(?P<writer>(?P<host>.+)-(?P<pid>[0-9]+)-[0-9a-f]{8})")


def new_writer() -> str:
    """Return a unique name of this process as a writer: HOST-PID-RANDOM."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def temporary_folder(folder: Path, step: int, writer: str | None = None) -> Path:
    """Return the path of a temporary folder in `folder`; a unique one without `writer`."""
    return folder / f".{format.folder_name(step)}.tmp-{writer or new_writer()}"


@contextlib.contextmanager
def renamed_when_complete(temporary: Path, final: Path, step: int) -> Iterator[None]:
    """Rename `temporary` to `final`, which it replaces, if the block succeeds; remove it otherwise. Raises OSError."""
    try:
        yield
        if final.exists():
            log.warning("%s: replaced, because it is damaged", final)
            delete(final, step)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing to remove
    sync(final.parent)


def delete(checkpoint: Path, step: int) -> None:
    """Delete a checkpoint: rename it first, so that no partial checkpoint is ever visible. Raises OSError."""
    to_delete = temporary_folder(checkpoint.parent, step)
    checkpoint.rename(to_delete)
    if to_delete.is_dir():
        shutil.rmtree(to_delete)
    else:
        to_delete.unlink()


def remove_abandoned(folder: Path, writer: str | None = None) -> None:
    """Remove the temporary folders of dead writers, except those of `writer`. Raises OSError."""
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["writer"] != writer and _is_abandoned(path, match["host"], int(match["pid"])):
            log.info("%s: removed; the process that created it has ended", path)
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        try:
            return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:
            return False  # the writer has just finished
    if pid == os.getpid():
        return True  # of an earlier process with the same pid: this process writes one checkpoint at a time
    return not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only checks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it exists and belongs to another user
    return True

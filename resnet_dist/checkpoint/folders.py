"""Temporary folders beside the checkpoints: named after their writer, swept away once that is dead."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

from resnet_dist.checkpoint import format

log = logging.getLogger(__name__)

# A writer on another host cannot be asked whether it lives. No checkpoint takes a day to write, so after a day of
# silence its folder is taken as left behind.
ABANDONED_AFTER_S = 24 * 60 * 60


def temporary_folder(folder: Path, step: int) -> Path:
    """A path in `folder` that nobody else uses, for a checkpoint that is being written or deleted."""
    return folder / format.temporary_name(step, socket.gethostname(), os.getpid(), secrets.token_hex(4))


def delete(checkpoint: Path, step: int) -> None:
    """Delete a checkpoint so that at no moment a part of it bears a checkpoint's name. Raises OSError."""
    doomed = temporary_folder(checkpoint.parent, step)
    checkpoint.rename(doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()


def remove_abandoned(folder: Path, spare: str = "") -> None:
    """Remove what dead writers left half written or half deleted. Raises OSError.

    Folders whose name has the random part `spare` are this run's own, whoever of its workers made them.
    """
    for temporary in format.temporary_folders(folder):
        if temporary.random != spare and _is_abandoned(temporary):
            log.info("%s: removed, left behind by a process that was killed", temporary.path)
            shutil.rmtree(temporary.path, ignore_errors=True)


def _is_abandoned(temporary: format.TemporaryFolder) -> bool:
    if temporary.host != socket.gethostname():
        try:
            return time.time() - temporary.path.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:
            return False  # its writer has just finished
    if temporary.pid == os.getpid():
        return True  # of an earlier process with our number: this one writes one checkpoint at a time
    return not _is_alive(temporary.pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is there, and another user's
    return True

"""Write a checkpoint: complete under its name, or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_dist.checkpoint import format, tensors
from resnet_dist.checkpoint.disk import reason, storage_errors, sync_folder, write_synced
from resnet_dist.errors import CheckpointError

log = logging.getLogger(__name__)

# {parameter name: {state name: tensor on the CPU}}, as resnet_dist.engines.protocol has it
OptimizerState = Mapping[str, Mapping[str, Tensor]]

STATELESS = "stateless"  # metadata of optimizer.safetensors: JSON list of the parameters that have no state

# A writer on another host cannot be asked whether it lives. No checkpoint takes a day to write, so after a day of
# silence its folder is taken as left behind.
ABANDONED_AFTER_S = 24 * 60 * 60


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: OptimizerState,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` completed steps into `folder`; return the path of its own folder.

    `state` is JSON; `step` is added to it. Of the checkpoints up to this step, the newest `keep` complete ones stay.
    Where a complete one of the same step is there already, it is kept as it is. For one process of the run at a time.
    Raises StorageError (disk full, read-only, no permission) and ValueError (what no checkpoint can hold); whatever
    it raises, the checkpoints that were there still are.
    """
    assert keep >= 1, keep  # the config's rules see to it
    state_bytes = format.json_bytes({**state, "step": step})
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        final = folder / format.folder_name(step)
        if not _is_good(final):
            temporary = _temporary_folder(folder, step)
            temporary.mkdir()
            try:
                _fill(temporary, model, optimizer, state_bytes)
                if final.exists():
                    log.warning("%s: replaced, as it cannot be trusted", final)
                    _delete(final, step)
                temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # nothing is there after the rename
            sync_folder(folder)
    _delete_older(folder, step, keep)
    return final


def _fill(folder: Path, model: Mapping[str, Tensor], optimizer: OptimizerState, state: bytes) -> None:
    flat = {f"{name}/{key}": value for name, states in optimizer.items() for key, value in states.items()}
    if any("/" in key for states in optimizer.values() for key in states):
        raise ValueError("the name of an optimizer state must not hold a slash")
    stateless = json.dumps([name for name, states in optimizer.items() if not states])
    files = {
        format.MODEL: tensors.write(folder / format.MODEL, model),
        format.OPTIMIZER: tensors.write(folder / format.OPTIMIZER, flat, {STATELESS: stateless}),
        format.STATE: format.FileRecord(len(state), hashlib.sha256(state).hexdigest()),
    }
    write_synced(folder / format.STATE, state)
    write_synced(folder / format.MANIFEST, format.manifest_bytes(files))
    sync_folder(folder)


def _temporary_folder(folder: Path, step: int) -> Path:
    return folder / format.temporary_name(step, socket.gethostname(), os.getpid(), secrets.token_hex(4))


def _is_good(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    try:
        format.verify(checkpoint)
    except CheckpointError as error:
        log.warning("%s", error)
        return False
    return True


def _delete(checkpoint: Path, step: int) -> None:
    """Delete a checkpoint so that at no moment a part of it bears a checkpoint's name."""
    doomed = _temporary_folder(checkpoint.parent, step)
    checkpoint.rename(doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()


def _delete_older(folder: Path, step: int, keep: int) -> None:
    """Delete the checkpoints before `step` that are older than the newest `keep` complete ones.

    Later ones (of an attempt before this one, which went on from an earlier step) are left alone: the run will
    come to their steps again. A deletion that fails costs space, not the run, which has its checkpoint.
    """
    num_complete = 0
    try:
        for path in format.step_folders(folder):
            own_step = format.step_of(path.name)
            if own_step is None or own_step > step:
                continue
            if num_complete >= keep:
                _delete(path, own_step)
            elif own_step == step or _has_its_sizes(path):
                num_complete += 1
    except OSError as error:
        log.warning("%s: an old checkpoint could not be deleted: %s", error.filename or folder, reason(error))


def _has_its_sizes(checkpoint: Path) -> bool:
    try:
        format.check_sizes(checkpoint)
    except CheckpointError as error:
        log.warning("%s: this checkpoint does not count as one of those to keep", error)
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove what dead writers left half written or half deleted."""
    for temporary in format.temporary_folders(folder):
        if _is_abandoned(temporary):
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
    try:
        os.kill(temporary.pid, 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it is there, and another user's
    return False

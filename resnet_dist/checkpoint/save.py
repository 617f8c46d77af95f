"""Write a checkpoint: complete under its name, or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_dist.checkpoint import folders, format, tensors
from resnet_dist.checkpoint.disk import reason, storage_errors, sync_folder, write_synced
from resnet_dist.checkpoint.parts import Parts
from resnet_dist.checkpoint.retention import Retention, delete_old
from resnet_dist.errors import CheckpointError

log = logging.getLogger(__name__)

# {parameter name: {state name: tensor}}, as resnet_dist.engines.protocol has it
OptimizerState = Mapping[str, Mapping[str, Tensor]]

STATELESS = "stateless"  # metadata of optimizer.safetensors: JSON list of the parameters that have no state
PIECES = "pieces"  # metadata of a part, see resnet_dist.checkpoint.format

# {parameter name: (first element, shape of the whole)}: its states are flat pieces, as far as they have dimensions
Pieces = Mapping[str, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Content:
    """What one checkpoint holds, known to fit into its files."""

    step: int  # completed steps
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # by "<parameter name>/<state name>"
    stateless: tuple[str, ...]
    state: bytes  # state.json
    ema: Mapping[str, Tensor] | None = None
    pieces: Pieces = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: OptimizerState,
        state: Mapping[str, Any],
        ema: Mapping[str, Tensor] | None = None,
        pieces: Pieces | None = None,
    ) -> Content:
        """Put a checkpoint together; `step` is added to `state`. ValueError for what no checkpoint can hold."""
        if any("/" in key for states in optimizer.values() for key in states):
            raise ValueError("the name of an optimizer state must not hold a slash")
        flat = {f"{name}/{key}": value for name, states in optimizer.items() for key, value in states.items()}
        tensors.check(model)
        tensors.check(flat)
        tensors.check({} if ema is None else ema)
        stateless = tuple(name for name, states in optimizer.items() if not states)
        return cls(step, model, flat, stateless, format.json_bytes({**state, "step": step}), ema, pieces or {})


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: OptimizerState,
    state: Mapping[str, Any],
    retention: Retention,
) -> Path:
    """Write the checkpoint of `step` completed steps into `folder`; return the path of its own folder.

    `state` is JSON; `step` is added to it. Older checkpoints that `retention` does not keep are deleted. Where a
    complete one of the same step is there already, it is kept as it is. For one process of the run at a time. Raises
    StorageError (disk full, read-only, no permission) and ValueError (what no checkpoint can hold); whatever it
    raises, the checkpoints that were there still are.
    """
    path = write(folder, Content.of(step, model, optimizer, state))
    delete_old(folder, step, retention)
    return path


def write(
    folder: Path, content: Content, parts: Parts | None = None, still_ours: Callable[[], None] = lambda: None
) -> Path:
    """As `save`, without deleting older ones. With `parts`, the other workers' are waited for.

    `still_ours` raises where another process has taken the run over meanwhile: then nothing gets its name.
    """
    final = folder / format.folder_name(content.step)
    temporary = parts.folder(folder, content.step) if parts else folders.temporary_folder(folder, content.step)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folders.remove_abandoned(folder, spare=parts.writer.random if parts else "")
        try:
            if not _is_good(final):
                temporary.mkdir(exist_ok=parts is not None)  # another worker may have come first
                _fill(temporary, content, parts)
                still_ours()
                if final.exists():
                    log.warning("%s: replaced, as it cannot be trusted", final)
                    folders.delete(final, content.step)
                temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # nothing is there after the rename
        sync_folder(folder)
    return final


def write_part(folder: Path, content: Content, parts: Parts) -> Path:
    """Write only this worker's part of the optimizer's state; rank 0, which writes the rest, is told how it went.

    Returns the path that the checkpoint will have. Raises StorageError.
    """
    temporary = parts.folder(folder, content.step)
    with storage_errors(folder):
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            parts.announce(temporary, _write_optimizer(temporary / parts.file, content))
        except OSError as error:
            with contextlib.suppress(OSError):  # then rank 0 waits in vain, and says so
                parts.give_up(temporary, reason(error))
            raise
    return folder / format.folder_name(content.step)


def _write_optimizer(path: Path, content: Content) -> format.FileRecord:
    metadata = {STATELESS: json.dumps(content.stateless)}
    if content.pieces:
        pieces = {name: {"start": start, "shape": shape} for name, (start, shape) in content.pieces.items()}
        metadata[PIECES] = json.dumps(pieces)
    return tensors.write(path, content.optimizer, metadata)


def _fill(folder: Path, content: Content, parts: Parts | None) -> None:
    optimizer = format.OPTIMIZER if parts is None else parts.file
    files = {
        format.MODEL: tensors.write(folder / format.MODEL, content.model),
        optimizer: _write_optimizer(folder / optimizer, content),
        format.STATE: format.FileRecord(len(content.state), hashlib.sha256(content.state).hexdigest()),
    }
    if content.ema is not None:
        files[format.EMA] = tensors.write(folder / format.EMA, content.ema)
    write_synced(folder / format.STATE, content.state)
    if parts is not None:
        files |= parts.wait_for_others(folder)
    write_synced(folder / format.MANIFEST, format.manifest_bytes(files))
    sync_folder(folder)


def _is_good(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    try:
        format.verify(checkpoint)
    except CheckpointError as error:
        log.warning("%s", error)
        return False
    return True

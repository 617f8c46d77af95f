"""Write a checkpoint: it appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from resnet_dist.checkpoint import folders, format, tensors
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.disk import reason, storage_errors, sync, write_synced
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.shards import to_metadata
from resnet_dist.errors import CheckpointError

log = logging.getLogger(__name__)


def write(
    folder: Path,
    content: CheckpointContent,
    parts: PartFiles | None = None,
    check_lease: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint into `folder` and return the path of its own folder. With `parts`, wait for other workers'.

    An intact checkpoint of the same step is not changed. `check_lease` is called before the checkpoint gets its name
    and raises if another process has taken over the run. Only one process of a run may write at a time. Raises
    StorageError (disk full, read-only, no permission), and ValueError for content that a checkpoint cannot hold.
    Existing checkpoints survive any error.
    """
    final = folder / format.folder_name(content.step)
    temporary = folders.temporary_folder(folder, content.step, parts.writer if parts else None)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folders.remove_abandoned(folder, parts.writer if parts else None)
        if _is_intact(final):
            shutil.rmtree(temporary, ignore_errors=True)  # with the parts that other workers wrote
            return final
        temporary.mkdir(exist_ok=parts is not None)  # another worker may have created it
        with folders.renamed_when_complete(temporary, final, content.step):
            _fill(temporary, content, parts)
            check_lease()
    return final


def write_part(folder: Path, content: CheckpointContent, parts: PartFiles) -> Path:
    """Write this worker's part of the optimizer state, and report success or failure to rank 0, which writes the rest.

    Returns the path that the checkpoint will have. Raises StorageError.
    """
    temporary = folders.temporary_folder(folder, content.step, parts.writer)
    with storage_errors(folder):
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            parts.announce(temporary, _write_optimizer(temporary / parts.file, content))
        except OSError as error:
            with contextlib.suppress(OSError):  # rank 0 then reports a timeout
                parts.announce(temporary, reason(error))
            raise
    return folder / format.folder_name(content.step)


def _write_optimizer(path: Path, content: CheckpointContent) -> format.FileRecord:
    stateless = [name for name, states in content.optimizer.items() if not states]
    return tensors.write(path, content.flat_optimizer(), to_metadata(stateless, content.shards))


def _fill(folder: Path, content: CheckpointContent, parts: PartFiles | None) -> None:
    optimizer, state = format.OPTIMIZER if parts is None else parts.file, content.state_json()
    files = {
        format.MODEL: tensors.write(folder / format.MODEL, content.model),
        optimizer: _write_optimizer(folder / optimizer, content),
        format.STATE: format.FileRecord(len(state), hashlib.sha256(state).hexdigest()),
    }
    if content.ema is not None:
        files[format.EMA] = tensors.write(folder / format.EMA, content.ema)
    write_synced(folder / format.STATE, state)
    if parts is not None:
        files |= parts.wait_for_others(folder)
    write_synced(folder / format.MANIFEST, format.manifest_bytes(files))
    sync(folder)


def _is_intact(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    try:
        format.verify(checkpoint)
    except CheckpointError as error:
        log.warning("%s", error)
        return False
    return True

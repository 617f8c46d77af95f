"""The weights that a run starts from, if `model.weights` is a folder: a checkpoint, or a run directory.

The moving average of the weights is taken if a checkpoint has one, since that is what its run evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from resnet_dist.checkpoint import format, restore
from resnet_dist.errors import RecipeError
from resnet_dist.models.weights import read_state_dict
from resnet_dist.rank_zero import run_on_rank_0

_CHECKPOINTS = "checkpoints"  # of a run directory

log = logging.getLogger(__name__)


def chosen(path: str, rank: int, world_size: int) -> str:
    """What `located` returns, the same on every worker; a folder is logged. A collective."""
    found = run_on_rank_0(lambda: located(path), rank, world_size)
    if rank == 0 and Path(found).is_dir():
        has_average = format.EMA in format.check_sizes(Path(found))
        which = "the moving average of the weights" if has_average else "the weights"
        log.warning("model.weights: starts with %s in %s", which, found)
    return found


def located(path: str) -> str:
    """`path`; for a run directory, the folder of its newest intact checkpoint.

    Raises RecipeError for a folder without checkpoints, CheckpointError for a damaged one, or if none is intact.
    """
    if not Path(path).is_dir():
        return path
    if (Path(path) / format.MANIFEST).exists():
        format.check_sizes(Path(path))
        return path
    checkpoint = restore.newest(Path(path) / _CHECKPOINTS)
    if checkpoint is None:
        found = f"{path}: a folder that is neither a checkpoint nor a run directory with checkpoints"
        raise RecipeError("model.weights", found, f"a file, RUN, or RUN/{_CHECKPOINTS}/step-NNNNNNNN")
    return str(checkpoint.path)


def read(path: str) -> Mapping[str, Tensor]:
    """The tensors in a checkpoint folder or a file, by name, on the CPU.

    Raises CheckpointError for a damaged checkpoint, and as `read_state_dict` does.
    """
    folder = Path(path)
    if not folder.is_dir():
        return read_state_dict(path)
    files = format.check_sizes(folder)
    checkpoint = restore.Checkpoint(folder, 0, {}, files)  # `chosen` has compared the hashes of a run's
    average = checkpoint.ema()
    return checkpoint.model() if average is None else {**checkpoint.model(), **average}

"""Find the checkpoint of a run, and load its model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from launcher.run.progress import checkpoint_folders
from launcher.run.recorded import recipe_of
from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.retention import metric_of
from resnet_dist.errors import CheckpointError
from resnet_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from resnet_dist.inference import TrainedModel, Weights

_log = logging.getLogger(__name__)

_ALLOWED = f"a run directory, or one of its checkpoints ({format.folder_name(42)}, a folder)"


@dataclass(frozen=True)
class Saved:
    """A checkpoint and the recipe that it records."""

    checkpoint: Path
    step: int  # completed steps
    recipe: Recipe
    run: RunDirectory | None  # None for a checkpoint outside of a run directory

    def load(self, weights: Weights = "auto") -> TrainedModel:
        """The model, on the CPU and in evaluation mode. Raises as `resnet_dist.inference.trained_model` does."""
        from resnet_dist.inference import trained_model  # torch, which takes seconds

        return trained_model(self.checkpoint, self.recipe, weights)


def saved(path: Path, *, best: bool = False) -> Saved:
    """The checkpoint in the folder `path`, or the newest intact one of the run directory `path`.

    `best`: the one with the highest top-1 of those that the run has kept, as their evaluations have recorded it. Sizes
    and hashes of the files are checked: of a run, a damaged checkpoint is skipped with a warning. Raises
    CheckpointError for a damaged checkpoint, one without a recipe that this version reads, or if all of a run are such;
    UsageError for another path, and for `best` if no evaluation is recorded.
    """
    try:
        return _found(path, best=best)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}. Allowed: {_ALLOWED}") from error


def _found(path: Path, *, best: bool) -> Saved:
    if (path / format.MANIFEST).exists():
        if best:
            raise UsageError(f"--best: {path} is one checkpoint. Allowed: a run directory")
        run = RunDirectory.at(path.parent.parent)
        return _saved(path, run if run.checkpoints == path.parent and run.config.is_file() else None)
    run = RunDirectory.at(path)
    if not run.checkpoints.is_dir():
        raise UsageError(_no_checkpoint(path))
    tried: set[Path] = set()
    failed: CheckpointError | None = None
    # Listed again after a failure: a run that goes on deletes old checkpoints and writes new ones.
    while folders := [folder for folder in checkpoint_folders(run) if folder not in tried]:
        folder = _best(path, folders) if best else folders[0]
        tried.add(folder)
        try:
            return _saved(folder, run)
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)
            failed = error
    if failed is None:
        raise UsageError(f"{path}: this run has saved no checkpoint yet. Allowed: a run with checkpoints")
    raise failed


def _best(path: Path, folders: list[Path]) -> Path:
    """The checkpoint with the highest recorded top-1; of equals the newest, which comes first."""
    metrics = {folder: metric for folder in folders if (metric := _top1(folder)) is not None}
    if not metrics:
        raise UsageError(f"--best: no checkpoint of {path} has a recorded evaluation. Allowed: without --best")
    return max(metrics, key=lambda folder: metrics[folder])


def _top1(folder: Path) -> float | None:
    try:
        return metric_of(format.read_json(folder / format.STATE), "top1")
    except CheckpointError:
        return None


def _no_checkpoint(path: Path) -> str:
    if path.is_file():
        folder = path.parent
        if (folder / format.MANIFEST).exists():
            return f"{path} is a file of a checkpoint. Allowed: its folder, {folder}"
        return f"{path} is a file. Allowed: {_ALLOWED}"
    if not path.exists():
        return f"{path}: no such folder. Allowed: {_ALLOWED}"
    if path.is_dir() and any(format.step_of(entry.name) is not None for entry in path.iterdir()):
        return f"{path}: is the folder of a run's checkpoints. Allowed: {path.parent}, or one of the checkpoints"
    return f"{path}: there is no checkpoint here. Allowed: {_ALLOWED}"


def _saved(folder: Path, run: RunDirectory | None) -> Saved:
    format.verify(folder)
    state = format.read_json(folder / format.STATE)
    recipe = recipe_of(state["recipe"]) if isinstance(state, dict) and isinstance(state.get("recipe"), dict) else None
    if recipe is None or not isinstance(state.get("step"), int):
        raise CheckpointError(str(folder / format.STATE), "has no recipe that this version can read")
    return Saved(folder, state["step"], recipe, run)

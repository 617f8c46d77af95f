"""Find the checkpoint of a run, and load its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from launcher.run.recorded import recipe_of
from resnet_dist.checkpoint import format
from resnet_dist.errors import CheckpointError
from resnet_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from resnet_dist.inference import TrainedModel, Weights


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


def saved(path: Path) -> Saved:
    """The checkpoint in the folder `path`, or the newest intact one of the run directory `path`.

    The sizes of its files are checked here, and their hashes when it is loaded. Raises CheckpointError for a damaged
    checkpoint or one without a recipe that this version reads, UsageError for another folder.
    """
    if (path / format.MANIFEST).exists():
        is_in_run = RunDirectory.at(path.parent.parent).checkpoints == path.parent and path.parent.parent.is_dir()
        return _saved(path, RunDirectory.at(path.parent.parent) if is_in_run else None)
    run = RunDirectory.at(path)
    if not run.checkpoints.is_dir():
        allowed = f"a run directory, or one of its checkpoints ({format.folder_name(42)}, a folder)"
        raise UsageError(f"{path}: there is no checkpoint here. Allowed: {allowed}")
    candidates = format.step_folders(run.checkpoints)
    for candidate in candidates:
        try:
            return _saved(candidate, run)
        except CheckpointError:
            if candidate == candidates[-1]:
                raise
    raise UsageError(f"{path}: this run has saved no checkpoint yet. Allowed: a run with checkpoints")


def _saved(folder: Path, run: RunDirectory | None) -> Saved:
    format.check_sizes(folder)
    state = format.read_json(folder / format.STATE)
    recipe = recipe_of(state["recipe"]) if isinstance(state, dict) and isinstance(state.get("recipe"), dict) else None
    if recipe is None or not isinstance(state.get("step"), int):
        raise CheckpointError(str(folder / format.STATE), "has no recipe that this version can read")
    return Saved(folder, state["step"], recipe, run)

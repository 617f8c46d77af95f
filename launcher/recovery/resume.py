"""Where a run starts: at the newest checkpoint, or at step 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.config.rules import problems
from launcher.config.schema import RunConfig, mirror_address
from launcher.errors import ConfigError, Problem, UsageError
from launcher.recovery.attempt import ResumeMode
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import format, mirror, restore
from resnet_dist.recipe.rules import settled


@dataclass(frozen=True)
class Start:
    """Where an attempt starts. `config` is settled and has the values that the run keeps; `notes` are for a person."""

    config: RunConfig
    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]


def choose(config: RunConfig, run: RunDirectory, mode: ResumeMode) -> Start:
    """The newest valid checkpoint, of the run directory or of its mirror, or step 0 without a checkpoint.

    Batch norm settings that the config leaves open keep the values of the checkpoint.

    Raises UsageError if `mode` does not allow what was found, ConfigError if the config changes a key that a run cannot
    change, CheckpointError if there are checkpoints and none is valid.
    """
    if mode == "never" and run.checkpoints.is_dir() and format.step_folders(run.checkpoints):
        raise UsageError(
            f"--resume never: {run.path} has checkpoints of an earlier run. Choose another name, move that folder "
            "away, or use --resume auto to resume"
        )
    found, source = restore.newest(run.checkpoints), ""
    address = mirror_address(config)
    if found is None and address is not None:
        found, source = mirror.fetch_newest(address, run.checkpoints), f" (from the mirror, {address})"
    if found is None:
        if mode == "must":
            raise UsageError(f"--resume must: there is no checkpoint in {run.checkpoints}")
        return Start(settled(config), None, 0, (f"run {run.path}: starts at step 0",))
    recipe = found.state["recipe"]
    resumed = recorded.with_kept_values(config, recipe)
    changes = recorded.changes(str(found.path), recipe, resumed)
    resumed = settled(resumed)
    if errors := problems(resumed):  # the config is valid, but not with the values that the run keeps
        allowed = "values that are valid with those of the run, or another name"
        wrong = [(error.key, f"{error.problem}; the run started with it") for error in errors]
        raise ConfigError([Problem(str(found.path), key, problem, allowed) for key, problem in wrong])
    notes = (
        f"run {run.path}: resumes at step {found.step + 1}, from {found.path.name}{source}",
        *_kept_values(settled(config), resumed),
        *changes,
    )
    return Start(resumed, found.path, found.step, notes)


def _kept_values(config: RunConfig, resumed: RunConfig) -> list[str]:
    """A line with the values that the run keeps and a new run would not have."""
    own, kept = config.batch_norm, resumed.batch_norm
    names = [name for name in recorded.KEPT_BY_THE_RUN if getattr(own, name) != getattr(kept, name)]
    values = ", ".join(f"batch_norm.{name} {getattr(kept, name)}" for name in names)
    return [f"  kept from the run, since the config leaves them open: {values}"] if names else []

"""Whether a start of a run goes on from a checkpoint, and from which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.config.rules import problems
from launcher.config.schema import RunConfig, mirror_address
from launcher.errors import ConfigError, Problem, UsageError
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import format, mirror, restore
from resnet_dist.recipe.rules import settled

ResumeMode = Literal["auto", "never", "must"]


@dataclass(frozen=True)
class Start:
    """Where an attempt begins, and with which config: `config` is what the run goes on with, settled.

    `notes` are lines for whoever watches.
    """

    config: RunConfig
    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]


def choose(config: RunConfig, run: RunDirectory, mode: ResumeMode) -> Start:
    """Where the run begins: at the newest complete checkpoint, or at its first step.

    What the config leaves open of batch norm is taken from the checkpoint: a run keeps what it began with.

    Raises UsageError where `mode` forbids what is there, ConfigError where the config has changed in what a run cannot
    change, CheckpointError where there are checkpoints and none is good.
    """
    if mode == "never" and run.checkpoints.is_dir() and format.step_folders(run.checkpoints):
        raise UsageError(
            f"--resume never: {run.path} holds checkpoints of an earlier run. Give this one another name, move that "
            "folder away, or use --resume auto to go on"
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
    going_on = recorded.going_on(config, recipe)
    changes = recorded.changes(str(found.path), recipe, going_on)
    going_on = settled(going_on)
    errors = problems(going_on)
    if errors:  # the config is a right one by itself, but not with what the run has
        allowed = "values that go with those of the run, or another name"
        wrong = [(error.key, f"{error.problem}; the run began with it") for error in errors]
        raise ConfigError([Problem(str(found.path), key, problem, allowed) for key, problem in wrong])
    notes = (
        f"run {run.path}: goes on at step {found.step + 1}, from {found.path.name}{source}",
        *_kept(settled(config), going_on),
        *changes,
    )
    return Start(going_on, found.path, found.step, notes)


def _kept(alone: RunConfig, going_on: RunConfig) -> list[str]:
    """What the run keeps, where the config alone stands for something else."""
    own, kept = alone.batch_norm, going_on.batch_norm
    names = [name for name in recorded.LEFT_TO_THE_RUN if getattr(own, name) != getattr(kept, name)]
    told = ", ".join(f"batch_norm.{name} {getattr(kept, name)}" for name in names)
    return [f"  kept from the run, as the config leaves it open: {told}"] if names else []

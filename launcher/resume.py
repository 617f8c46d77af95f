"""Whether a start of a run goes on from a checkpoint, and from which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.errors import ConfigError, Problem, UsageError
from launcher.run_config import RunConfig, mirror_address
from launcher.run_directory import RunDirectory
from resnet_dist.build import described
from resnet_dist.checkpoint import format, mirror, restore

ResumeMode = Literal["auto", "never", "must"]

# What a run is: a change would make its later half another experiment.
FIXED = ("seed", "model", "data", "batch.size", "batch_norm", "optimizer.name", "optimizer.convention", "precision")
# Where the images lie and how they are read may change, if they are the same images (their fingerprint is compared).
FREE = ("data.root", "data.decoder", "data.prefetch", "data.num_samples", "model.weights")


@dataclass(frozen=True)
class Start:
    """Where an attempt begins. `notes` are lines for whoever watches."""

    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]


def choose(config: RunConfig, run: RunDirectory, mode: ResumeMode) -> Start:
    """Where the run begins: at the newest complete checkpoint, or at its first step.

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
        return Start(None, 0, (f"run {run.path}: starts at step 0",))
    changes = list(_changes(found.state["recipe"], described(config.recipe())))
    refused = [change for change in changes if _is_fixed(change[0])]
    if refused:
        raise ConfigError(
            [
                Problem(
                    str(found.path),
                    key,
                    f"the run has {before!r}, the config {after!r}",
                    "the run's value, or another name",
                )
                for key, before, after in refused
            ]
        )
    notes = [f"run {run.path}: goes on at step {found.step + 1}, from {found.path.name}{source}"]
    notes += [f"  changed since: {key} was {before!r}, is {after!r}" for key, before, after in changes]
    return Start(found.path, found.step, tuple(notes))


def _is_fixed(key: str) -> bool:
    return not key.startswith(FREE) and any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def _changes(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value after) of everything that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, before, after

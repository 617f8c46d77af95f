"""Where a run starts: at the newest checkpoint, or at step 0."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from launcher.config.rules import problems
from launcher.config.schema import RunConfig, mirror_address
from launcher.errors import ConfigError, Problem, UsageError
from launcher.recovery.attempt import ResumeMode
from launcher.recovery.preconditions import check_mode, refuse_missing_checkpoints, refuse_shorter
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import mirror, restore
from resnet_dist.data.index.made import saved_index
from resnet_dist.data.sources.by_name import num_in_use
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schedule import build_schedule
from resnet_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Start:
    """Where an attempt starts. `config` is settled and has the values that the run keeps; `notes` are for a person."""

    config: RunConfig
    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]

    @property
    def changes(self) -> list[str]:
        """What differs from the run so far: the notes without the first, which says where it starts."""
        return [note.strip() for note in self.notes[1:]]

    def from_memory(self, run: RunDirectory, step: int, rank: int) -> Start:
        """The same start at `step` completed steps, which worker `rank` has in memory."""
        note = f"run {run.path}: goes on at step {step + 1}, from the memory of worker {rank}"
        return dataclasses.replace(self, checkpoint=None, step=step, notes=(note, *self.notes[1:]))


def choose(config: RunConfig, run: RunDirectory, mode: ResumeMode) -> Start:
    """The newest valid checkpoint, of the run directory or of its mirror, or step 0 without a checkpoint.

    Batch norm settings that the config leaves open keep the values of the checkpoint.

    Raises UsageError if `mode` does not allow what was found, ConfigError if the config changes a key that a run cannot
    change, CheckpointError if there are checkpoints and none is valid, StorageError if there are none and the run has
    recorded one.
    """
    address = mirror_address(config)
    check_mode(run, mode, has_mirror=address is not None)
    found, source = restore.newest(run.checkpoints), ""
    if found is None and address is not None:
        found, source = mirror.fetch_newest(address, run.checkpoints), f" (from the mirror, {address})"
    if found is None:
        if mode == "must":
            raise UsageError(f"--resume must: there is no checkpoint in {run.checkpoints}")
        if mode == "auto":
            refuse_missing_checkpoints(run)
        return Start(settled(config), None, 0, (f"run {run.path}: starts at step 0",))
    recipe = found.state["recipe"]
    resumed = recorded.with_kept_values(config, recipe)
    changes = recorded.changes(str(found.path), recipe, resumed)
    resumed = settled(resumed)
    if errors := problems(resumed):  # the config is valid, but not with the values that the run keeps
        allowed = "values that are valid with those of the run, or another name"
        began = f"; the run started with it ({found.path})"
        raise ConfigError([Problem("", error.key, f"{error.problem}{began}", allowed) for error in errors])
    before, num_samples = recorded.recipe_of(recipe), _num_samples(config, run)
    if before is not None and before.duration != resumed.duration:
        refuse_shorter(resumed, run, num_samples)
    notes = (
        f"run {run.path}: resumes at step {found.step + 1}, from {found.path.name}{source}",
        *_kept_values(settled(config), resumed),
        *changes,
        *([] if before is None else _learning_rate_jump(before, resumed, found.step, num_samples)),
    )
    return Start(resumed, found.path, found.step, notes)


def _num_samples(config: RunConfig, run: RunDirectory) -> int | None:
    """The number of images that are trained on: from the config, or from the index of an earlier attempt."""
    known = config.data.num_trained()
    if known is not None:
        return known
    index = saved_index(config.data, "train", run.index, run.shared_index)
    return None if index is None else config.data.num_trained(num_in_use(config.data, index))


def _learning_rate_jump(before: Recipe, after: Recipe, step: int, num_samples: int | None) -> list[str]:
    """A line if the LR after `step` completed steps is not the one that the recipe `before` has there.

    Nothing is said if that depends on an unknown size of the data set, or on a function of the user.
    """
    if (before.schedule, before.duration) == (after.schedule, after.duration):
        return []
    lengths = [length for one in (before, after) for length in (one.duration, one.schedule.warmup)]
    lengths += [*before.schedule.milestones, *after.schedule.milestones]
    lengths += [one.schedule.decay_length for one in (before, after) if one.schedule.decay_length is not None]
    if num_samples is None and any(length.unit == "epochs" for length in lengths):
        return []
    if is_reference(before.schedule.decay) or is_reference(after.schedule.decay):
        return []
    size = {"batch_size": after.batch.size, "num_samples": num_samples or 1}  # 1: not used, there are no epochs
    old, new = (
        build_schedule(one.schedule, **size, total_steps=one.duration.steps(**size), run=one) for one in (before, after)
    )
    if math.isclose(old(step), new(step), rel_tol=1e-9):
        return []
    last = max(step - 1, 0)
    direction = "rises" if new(step) > old(last) else "falls"
    return [
        f"  the LR {direction} from {old(last):.4g} (step {last + 1}, the run's schedule so far) to {new(step):.4g}"
        f" (step {step + 1}, the schedule of this config)"
    ]


def _kept_values(config: RunConfig, resumed: RunConfig) -> list[str]:
    """A line with the values that the run keeps and a new run would not have."""
    own, kept = config.batch_norm, resumed.batch_norm
    names = [name for name in recorded.KEPT_BY_THE_RUN if getattr(own, name) != getattr(kept, name)]
    values = ", ".join(f"batch_norm.{name} {getattr(kept, name)}" for name in names)
    return [f"  kept from the run, since the config leaves them open: {values}"] if names else []

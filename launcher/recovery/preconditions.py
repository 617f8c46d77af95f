"""What a run needs before anything is started, as far as this process can tell without torch.

The trainer checks the same rules again, with the data that it reads.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.checks.finding import NoAnswerError, call_within
from launcher.config.rules import problems
from launcher.config.schema import RunConfig, mirror_address, resolve_place
from launcher.errors import ConfigError, Problem, UsageError
from launcher.recovery.attempt import ResumeMode
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from launcher.run.progress import checkpoint_folders, newest_step, newest_valid_step, recorded_step
from resnet_dist.errors import RecipeError, StorageError
from resnet_dist.recipe.requirements import LARGEST_COUNT
from resnet_dist.recipe.rules import shorter_than

COUNT_S = 10.0  # for counting images; the number is left to the run if it takes longer


def check(config: RunConfig, run: RunDirectory, mode: ResumeMode) -> None:
    """Raise the error with which the run would end before its first step. Nothing is written.

    Raises UsageError if Ray is missing or `mode` does not allow what is in the run directory; RecipeError for a file or
    a value that cannot be used with this data set, and for a duration that is shorter than what is done; DataError if
    the folders of the images are missing; StorageError if the checkpoints are.
    """
    has_checkpoint, has_mirror = bool(checkpoint_folders(run)), mirror_address(config) is not None
    check_mode(run, mode, has_mirror=has_mirror)
    if mode == "auto" and not has_checkpoint and not has_mirror:
        refuse_missing_checkpoints(run)
    if not _elsewhere(config):
        weights = config.model.weights
        if weights is not None and not has_checkpoint and not Path(weights).exists():
            allowed = "a .pt, .pth, .pth.tar or .safetensors file, or a checkpoint or run directory"
            raise RecipeError("model.weights", f"{weights}: no such file or folder", allowed)
        from resnet_dist.data.sources.by_name import check_root

        check_root(config.data)
    check_sizes(config)
    if mode != "never" and (has_checkpoint or run.is_finished()):
        refuse_shorter(config, run)


def check_sizes(config: RunConfig) -> None:
    """Raise RecipeError for a value that cannot be used with this number of training images, if it is known here."""
    if any(problems(config, size) for size in (1, LARGEST_COUNT)):  # else no rule depends on the number
        for problem in problems(config, num_training_images(config)):
            raise problem


def check_mode(run: RunDirectory, mode: ResumeMode, *, has_mirror: bool) -> None:
    """Raise UsageError if `mode` does not allow the checkpoints that are in the run directory, or their absence."""
    folders = checkpoint_folders(run)
    if mode == "never" and folders:
        raise UsageError(
            f"--resume never: {run.path} has checkpoints of an earlier run. Choose another name, move that folder "
            "away, or use --resume auto to resume"
        )
    if mode == "must" and not folders and not has_mirror:
        raise UsageError(f"--resume must: there is no checkpoint in {run.checkpoints}")


def refuse_missing_checkpoints(run: RunDirectory) -> None:
    """Raise StorageError if the run has recorded a checkpoint. For a run directory without checkpoints."""
    if step := recorded_step(run):
        problem = f"the run has recorded a checkpoint of step {step}, and there is none: deleted, moved or unmounted"
        advice = "Mount or restore the folder, or start over at step 0 with --resume never"
        raise StorageError(str(run.checkpoints), f"{problem}. {advice}")


def num_training_images(config: RunConfig) -> int | None:
    """The number of images that are trained on, from the config or a listing of the images; None if it is not known.

    The user's own functions are not called. Raises DataError if the images cannot be listed.
    """
    data = config.data
    known = data.num_trained()
    root = Path(data.root, "train") if data.source == "imagefolder" else Path(data.root)
    if known is not None or not os.path.isdir(root):  # noqa: PTH112  Path.is_dir raises if it cannot read above
        return known
    from resnet_dist.data.sources.by_name import listed, num_in_use

    try:
        found = call_within(COUNT_S, lambda: listed(data, "train"), "count images")
    except NoAnswerError:
        return None
    return None if found is None else data.num_trained(num_in_use(data, found))


def refuse_shorter(config: RunConfig, run: RunDirectory, num_samples: int | None = None) -> None:
    """Raise ConfigError if the duration is shorter than what the run has done. The data may be counted.

    Nothing is compared if the size of the data set is needed and not known.
    """
    found = recorded.newest_recipe(run)
    if found is not None and found[1].get("duration") == str(config.duration):
        return
    summary = run.summary()
    steps = (summary or {}).get("step")
    finished = steps if isinstance(steps, int) else 0
    if config.duration.unit == "epochs":
        num_samples = num_samples or num_training_images(config)
    if not shorter_than(config, max(finished, newest_step(run)), num_samples):
        return
    done = max(finished, newest_valid_step(run))  # the hashes of all files are compared: minutes for large checkpoints
    for error in shorter_than(config, done, num_samples):
        where = run.finished_file if finished == done else checkpoint_folders(run)[0]
        raise ConfigError([Problem("", error.key, f"{error.problem} ({where})", f"{error.allowed}, or another name")])


def _elsewhere(config: RunConfig) -> bool:
    """Whether the workers may be on other machines than this process. Raises UsageError if Ray is missing."""
    return resolve_place(config.place) == "ray" and bool(os.environ.get("RAY_ADDRESS"))

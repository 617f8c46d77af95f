"""The main job: `python -m launcher.train CONFIG [key=value ...] [--resume auto|never|must]`."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import config as configs
from launcher import ray_environment
from launcher.arguments import Parser, train_arguments
from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.exit_codes import ExitCode
from launcher.faults import rule_for
from launcher.local import run_local, under_torchrun
from launcher.progress import Progress, summary_lines
from launcher.resume import ResumeMode
from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory
from resnet_dist.errors import TrainingError
from resnet_dist.sink import read_metrics


def main(arguments: Sequence[str] | None = None, prog: str = "python -m launcher.train") -> int:
    """Run the main job; returns its exit code. Errors are printed, without a traceback where they are the user's."""
    parser = Parser(prog=prog, description="Train what CONFIG describes.")
    train_arguments(parser)
    try:
        given = parser.parse_intermixed_args(arguments)  # options may stand anywhere
        config = configs.load(given.config, given.overrides)
        code, _ = train(config, given.resume, Progress())
        return code
    except Exception as error:
        return report(error)


def report(error: Exception) -> ExitCode:
    """Print `error` for a person; the traceback too, unless the error is one that was foreseen."""
    code = rule_for(error).exit_code
    if isinstance(error, LauncherError | TrainingError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return code


def train(
    config: RunConfig, mode: ResumeMode = "auto", progress: Progress | None = None
) -> tuple[ExitCode, RunDirectory]:
    """Train `config` where its `place` says; what a run directory must say of the end is written here.

    Returns the exit code and the run directory; raises what ended the run.
    """
    progress = Progress() if progress is None else progress
    run = RunDirectory(Path(config.storage), config.name)
    leads = os.environ.get("RANK", "0") == "0" or not under_torchrun()
    if run.is_finished() and mode != "never" and _has_all_steps(config, run):
        if leads:
            progress.say(f"run {run.path}: finished already; start it under another name to train it again")
        return ExitCode.OK, run
    if leads:
        run.create()
    try:
        if place_of(config) == "ray":
            ray_environment.set_up()
            from launcher.ray_driver import run_ray

            code, outcome = run_ray(config, run, mode, progress)
        else:
            code, outcome = run_local(config, run, mode, progress)
    except Exception as error:
        rule = rule_for(error)
        if leads and not isinstance(error, UsageError | ConfigError):  # these say nothing of the run that is there
            run.mark_fatal(rule.exit_code, f"{type(error).__name__}: {error}")
        raise
    if leads:
        if code is ExitCode.OK:
            summary = {**outcome, "images_per_s": _images_per_s(run), "duration": str(config.duration)}
            run.mark_finished(summary)
            for line in summary_lines(run, summary):
                progress.say(line)
        else:
            progress.say(f"saved at step {outcome['step']}; the same command goes on from there")
    return code, run


def place_of(config: RunConfig) -> str:
    """Where the run is carried out: torchrun's processes, Ray where it is installed, or this process."""
    if config.place != "auto":
        if config.place == "ray" and not _has_ray():
            raise UsageError("place: ray needs Ray, which is not installed here: pip install 'resnet-launcher[ray]'")
        return config.place
    if under_torchrun():
        return "local"
    return "ray" if _has_ray() else "local"


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


def _has_all_steps(config: RunConfig, run: RunDirectory) -> bool:
    """Whether a finished run is as long as the config wants: a longer duration goes on."""
    summary = run.summary() or {}
    return summary.get("duration") == str(config.duration)


def _images_per_s(run: RunDirectory) -> float:
    """Images per second over the steps that metrics.jsonl has, weighted by their time."""
    records: list[dict[str, Any]] = [record for record in read_metrics(run.metrics) if record["kind"] == "train"]
    seconds = sum(record["step_time_s"] for record in records)
    images = sum(record["images_per_s"] * record["step_time_s"] for record in records)
    return images / seconds if seconds else 0.0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.exit(exit_code)

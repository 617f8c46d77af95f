"""The main job: `python -m launcher.train CONFIG [key=value ...] [--resume auto|never|must]`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.arguments import Parser, train_arguments
from launcher.config import load as configs
from launcher.config.schema import RunConfig, leads, place_of, under_torchrun
from launcher.console import Progress, profile_lines, summary_lines
from launcher.errors import LauncherError
from launcher.exit_codes import ExitCode
from launcher.ray_backend import environment as ray_environment
from launcher.recovery import root_cause as fatal
from launcher.recovery.faults import rule_for
from launcher.recovery.notify import Notifier
from launcher.run import lease, recorded, submissions
from launcher.run.directory import RunDirectory
from resnet_dist.errors import TrainingError
from resnet_dist.telemetry.metrics_file import read_metrics

if TYPE_CHECKING:
    from launcher.recovery.resume import ResumeMode


def main(arguments: Sequence[str] | None = None, prog: str = "python -m launcher.train") -> int:
    """Run the main job; returns its exit code. Errors are printed, without a traceback where they are the user's."""
    parser = Parser(prog=prog, description="Train what CONFIG describes.")
    train_arguments(parser)
    given = None
    try:
        given = parser.parse_intermixed_args(arguments)  # options may stand anywhere
        profile = [] if given.profile is None else [f'log.profile="{given.profile}"']
        config = configs.load(given.config, [*given.overrides, *profile])
        code, _ = train(config, given.resume, Progress(), attended=True)
        return code
    except Exception as error:
        exit_code = report(error if given is None else configs.in_users_lines(error, given.config, given.overrides))
        if getattr(error, "gone", False):  # a cluster that ended: Ray would turn our exit code into its own
            os._exit(exit_code)
        return exit_code


def report(error: Exception) -> ExitCode:
    """Print `error` for a person; the traceback too, unless the error is one that was foreseen."""
    code = rule_for(error).exit_code
    if isinstance(error, LauncherError | TrainingError):
        print("\n".join([f"error: {error}", *fatal.notes(error)]), file=sys.stderr, flush=True)
    else:
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return code


def train(
    config: RunConfig, mode: ResumeMode = "auto", progress: Progress | None = None, *, attended: bool = False
) -> tuple[ExitCode, RunDirectory]:
    """Train `config` where its `place` says; what a run directory must say of the end is written here.

    `attended`: this process is the run's own, and may be ended where it hangs or has lost the run to another one.
    Returns the exit code and the run directory; raises what ended the run.
    """
    progress = Progress() if progress is None else progress
    run = RunDirectory(Path(config.storage), config.name)
    ended = _ended_already(config, run, mode, progress)
    if ended is not None:
        return ended, run
    notifier = Notifier(config.notify, run)
    try:
        with _lease(run, attended) as held:
            if held is not None:  # it may have been waited for
                ended = _ended_already(config, run, mode, progress)
            if ended is not None:
                return ended, run
            code, outcome = _carried_out(config, run, mode, progress, notifier, attended, held)
            if leads():
                _record_end(config, run, code, outcome, progress, notifier)
    finally:
        notifier.close()
    return code, run


def _ended_already(config: RunConfig, run: RunDirectory, mode: ResumeMode, progress: Progress) -> ExitCode | None:
    """The exit code of a run with nothing left to do: it is finished, or this very submission has ended for good.

    Raises ConfigError where a finished run is another one than the config describes. Every process looks for itself.
    """
    if run.is_finished() and mode != "never" and _has_all_steps(config, run):
        recorded.refuse_changes(config, run)
        if leads():
            progress.say(f"run {run.path}: finished already; start it under another name to train it again")
        return ExitCode.OK
    end = run.fatal()
    if end is None or not fatal.ends_submission(end):
        return None
    if leads():
        progress.say(f"run {run.path}: this submission ended for good at {end.time}: {end.message}")
        progress.say("nothing was tried again: mend that, and submit the run anew")
    return ExitCode(end.exit_code)


def _carried_out(
    config: RunConfig,
    run: RunDirectory,
    mode: ResumeMode,
    progress: Progress,
    notifier: Notifier,
    attended: bool,
    held: lease.Lease | None,
) -> tuple[ExitCode, dict[str, Any]]:
    before = run.fatal()
    try:
        if place_of(config) == "ray":
            ray_environment.set_up()
            from launcher.ray_backend.driver import run_ray

            return run_ray(config, run, mode, progress, notifier, attended=attended, held=held)
        if attended and config.faults.max_failures > 0 and not under_torchrun():
            from launcher.local.supervisor import run_supervised

            return run_supervised(config, run, mode, progress, notifier, held)
        from launcher.local.run import run_local

        return run_local(config, run, mode, progress, watched=attended, claim=None if held is None else held.claim)
    except Exception as error:
        if leads():
            fatal.tell(run, error, instead_of=before, keep=under_torchrun())  # there, each worker tells its own
        raise


def _lease(run: RunDirectory, attended: bool) -> contextlib.AbstractContextManager[lease.Lease | None]:
    """The run directory for this process alone. Raises LeaseHeld where another one is at work in it."""
    if not leads():
        return contextlib.nullcontext()
    run.create()

    def lost() -> None:
        print(f"error: {run.path}: another process has taken this run over", file=sys.stderr, flush=True)
        if attended:
            os._exit(ExitCode.UNAVAILABLE)

    return lease.acquire(run.lease, on_lost=lost, submission=submissions.current())


def _record_end(
    config: RunConfig,
    run: RunDirectory,
    code: ExitCode,
    outcome: dict[str, Any],
    progress: Progress,
    notifier: Notifier,
) -> None:
    step = outcome["step"]
    if code is ExitCode.OK:
        summary = {**outcome, "images_per_s": _images_per_s(run), "duration": str(config.duration)}
        run.mark_finished(summary)
        notifier.tell("finished", f"all {step} steps done", step=step, exit_code=int(code))
        for line in summary_lines(run, summary):
            progress.say(line)
    else:
        event = "preempted" if outcome.get("preempted") else "stopped"
        notifier.tell(event, f"saved at step {step}", step=step, exit_code=int(code))
        progress.say(f"saved at step {step}; the same command goes on from there")
        for line in profile_lines(run):
            progress.say(line)


def _has_all_steps(config: RunConfig, run: RunDirectory) -> bool:
    """Whether a finished run is as long as the config wants: a longer duration goes on."""
    summary = run.summary() or {}
    return summary.get("duration") == str(config.duration)


def _images_per_s(run: RunDirectory) -> float:
    """Images per second over the steps that metrics.jsonl has, weighted by their time; without those not measured."""
    records: list[dict[str, Any]] = [record for record in read_metrics(run.metrics) if record["kind"] == "train"]
    laps = [(record.get("images_per_s"), record.get("step_time_s")) for record in records]
    measured = [(speed, time_s) for speed, time_s in laps if speed is not None and time_s is not None]
    seconds = sum(time_s for _, time_s in measured)
    return sum(speed * time_s for speed, time_s in measured) / seconds if seconds else 0.0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.exit(exit_code)

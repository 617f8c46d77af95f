"""The main job: `python -m launcher.train CONFIG [key=value ...] [--resume auto|never|must]`."""

from __future__ import annotations

import sys

from launcher import signals

if __name__ == "__main__":
    _STOP = signals.take_over(signals.OPENING)  # before the other imports, which take a quarter of a second
    from launcher.local import early

    _FIRST = early.start_first(sys.argv[1:])  # imports PyTorch meanwhile

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.arguments import Parser, train_arguments
from launcher.config import load as configs
from launcher.config.schema import RunConfig, leads, resolve_place, under_torchrun
from launcher.console import Progress, profile_lines, summary_lines
from launcher.console.description import description
from launcher.console.progress import command_began
from launcher.errors import LauncherError
from launcher.exit_codes import ExitCode
from launcher.local.early import Started
from launcher.local.spares import Spares
from launcher.ray_backend import environment as ray_environment
from launcher.recovery import ends, preconditions, root_cause
from launcher.recovery.attempt import AttemptResult, ResumeMode
from launcher.recovery.faults import rule_for
from launcher.recovery.notify import Notifier
from launcher.recovery.portable import missing_package
from launcher.recovery.session import Session
from launcher.run import lease, recorded
from launcher.run.directory import RunDirectory, current_submission
from launcher.run.progress import images_per_s
from launcher.run.record_types import as_time
from launcher.signals import StopSignals
from resnet_dist.errors import StorageError, TrainingError

log = logging.getLogger(__name__)

CHECKS = "checking the config and the run directory"
SAVES = "saving at the next step"
NOTHING_TRAINED = "stopped before the first step; nothing was trained"


def main(
    arguments: Sequence[str] | None = None,
    prog: str = "python -m launcher.train",
    stop: StopSignals | None = None,
    first: Started | None = None,
) -> int:
    """Run the main job; returns its exit code. Errors are printed, with a traceback only if they are unexpected.

    `stop`: the signals that this process handles already; without it, they are handled during the call. `first`: a
    worker process that was started already; it ends with this call, or earlier if the run has no use for it.
    """
    parser = Parser(prog=prog, description="Train what CONFIG describes.")
    train_arguments(parser)
    given, progress = None, Progress(began=None if stop is None else command_began())
    try:
        with contextlib.closing(Spares(progress, first=first)) as spares:
            given = parser.parse_intermixed_args(arguments)  # options may be anywhere
            if os.environ.get("RANK", "0") == "0":
                progress.stage(CHECKS, None if stop is None else progress.began)
            profile = [] if given.profile is None else [f'log.profile="{given.profile}"']
            config = configs.load(given.config, [*given.overrides, *profile])
            with StopSignals("end") if stop is None else contextlib.nullcontext(stop) as stop:
                code, _ = train(config, given.resume, progress, attended=True, stop=stop, spares=spares)
        return code
    except Exception as error:
        progress.close()
        exit_code = report(error if given is None else configs.in_users_lines(error, given.config, given.overrides))
        if getattr(error, "skip_shutdown", False):  # the cluster has ended: Ray would change the exit code
            os._exit(exit_code)
        return exit_code


def report(error: Exception) -> ExitCode:
    """Print `error` for a person, with its traceback if it is unexpected; returns its exit code."""
    error = missing_package(error) or error
    if isinstance(error, LauncherError | TrainingError):
        print("\n".join([f"error: {error}", *root_cause.notes(error)]), file=sys.stderr, flush=True)
    else:
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return rule_for(error).exit_code


def train(
    config: RunConfig,
    mode: ResumeMode = "auto",
    progress: Progress | None = None,
    *,
    attended: bool = False,
    stop: StopSignals | None = None,
    spares: Spares | None = None,
) -> tuple[ExitCode, RunDirectory]:
    """Train `config` at its `place`, and write FINISHED or FATAL.

    `attended`: this process belongs to the run, and may be ended if it hangs or loses its lease. `stop`: the signals
    that it handles; without it, they are handled during the call, and a second Ctrl-C raises KeyboardInterrupt.
    `spares`: processes that were started already. Returns the exit code and the run directory; raises the error that
    ended the run.
    """
    if stop is None:
        with StopSignals() as stop:
            return train(config, mode, progress, attended=attended, stop=stop, spares=spares)
    progress = Progress() if progress is None else progress
    spares = Spares(progress, same_path=not attended) if spares is None else spares
    with contextlib.closing(progress), contextlib.closing(spares):
        return _train_and_record(config, mode, progress, attended, stop, spares)


def _train_and_record(
    config: RunConfig, mode: ResumeMode, progress: Progress, attended: bool, stop: StopSignals, spares: Spares
) -> tuple[ExitCode, RunDirectory]:
    run = RunDirectory(Path(config.storage), config.name)
    code = _nothing_to_do(config, run, mode, progress)
    if code is not None:
        return code, run
    if not _is_supervised(config, attended):
        spares.close()
    elif stop.received is None:  # they import PyTorch while the run is checked
        spares.start(config.resources.local_workers)
    return _checked_and_trained(config, mode, progress, attended, stop, spares), run


def _is_supervised(config: RunConfig, attended: bool) -> bool:
    restarts = attended and config.faults.max_failures > 0
    is_local = config.place != "ray" and resolve_place(config.place) == "local" and not under_torchrun()
    return is_local and (restarts or config.resources.local_workers > 1)


def _checked_and_trained(
    config: RunConfig, mode: ResumeMode, progress: Progress, attended: bool, stop: StopSignals, spares: Spares
) -> ExitCode:
    run, code = RunDirectory(Path(config.storage), config.name), None
    if not under_torchrun():  # there, the workers find the same errors, and record them for the scheduler's script
        preconditions.check(config, run, mode)
    notifier = Notifier(config.notify, run)
    try:
        with _lease(run, attended, stop, progress) as held:
            if held is not None:  # while this process waited for the lease, the run may have ended
                code = _nothing_to_do(config, run, mode, progress)
            if code is None:
                num_before = len(run.attempts())
                session = Session(config, run, progress, notifier, held, attended, stop)
                _follow(session)
                if leads():
                    from launcher.planning import record as forecasts  # once the config and the directory are right

                    forecasts.write(config, run)
                code, result = _train(session, mode, spares)
                stop.answer("the run is ending already")
                if leads():
                    _record_end(session, code, result, num_before)
    except lease.LeaseHeld as error:
        if not stop.stopped:
            raise
        progress.print(f"{error}\n{NOTHING_TRAINED}")
        code = stop.exit_code
    finally:
        notifier.close()
    return code


def _nothing_to_do(config: RunConfig, run: RunDirectory, mode: ResumeMode, progress: Progress) -> ExitCode | None:
    """The exit code if the run is finished, or if this submission has failed for good; else None.

    Raises ConfigError if the finished run differs from the config. Under torchrun, every process checks.
    """
    if mode != "never" and recorded.is_done(config, run):
        recorded.refuse_changes(config, run)
        progress.close()
        if leads():
            progress.print(f"run {run.path}: finished already; choose another name to train it again")
        return ExitCode.OK
    failure = run.fatal()
    if failure is None or not root_cause.ends_submission(failure):
        return None
    progress.close()
    if leads():
        progress.print(f"run {run.path}: this submission failed for good at {failure.time}: {failure.message}")
        progress.print("it is not retried: fix the cause, and submit the run again")
    return ExitCode(failure.exit_code)


def _follow(session: Session) -> None:
    """Say what is trained once that begins, and what a signal leads to from then on."""
    config, run, progress, stop = session.config, session.run, session.progress, session.stop

    def describe(detail: Mapping[str, Any], step: int) -> list[str]:
        total_steps, num_samples = detail.get("total_steps"), detail.get("num_samples")
        if not isinstance(total_steps, int) or not isinstance(num_samples, int):
            return []
        workers = run.attempts()[-1].facts.get("workers", config.workers.most)
        return description(config, workers, step=step, total_steps=total_steps, num_samples=num_samples)

    progress.describe = describe
    progress.on_record = lambda: stop.answer(SAVES)


def _train(session: Session, mode: ResumeMode, spares: Spares) -> tuple[ExitCode, AttemptResult]:
    config, run = session.config, session.run
    previous = run.fatal()
    try:
        if resolve_place(config.place) == "ray":
            session.progress.stage("importing Ray")
            ray_environment.set_up()
            from launcher.ray_backend.run import run_ray

            return run_ray(session, mode)
        if _is_supervised(config, session.attended):
            from launcher.local.supervisor import run_supervised

            return run_supervised(session, mode, spares)
        if leads():
            session.progress.stage("importing PyTorch")
        from launcher.local.run import run_local

        return run_local(
            config, run, mode, session.progress, session.stop, watched=session.attended, claim=session.claim
        )
    except Exception as found:
        error = missing_package(found) or found
        if leads():
            # Under torchrun, each worker records its own error.
            root_cause.record_failure(run, error, previous=previous, keep=under_torchrun())
        if error is found:
            raise
        raise error from found


@contextlib.contextmanager
def _lease(run: RunDirectory, attended: bool, stop: StopSignals, progress: Progress) -> Iterator[lease.Lease | None]:
    """The lease on the run directory in the block, on rank 0. Raises LeaseHeld if another process holds it."""
    if not leads():
        yield None
        return
    run.create()

    def lost() -> None:
        print(f"error: {run.path}: another process has taken over this run", file=sys.stderr, flush=True)
        if attended:
            os._exit(ExitCode.UNAVAILABLE)

    began = as_time(time.time() - (time.monotonic() - progress.began))
    held = lease.acquire(
        run.lease,
        on_lost=lost,
        submission=current_submission(),
        command_began=began,
        stopped=lambda: stop.stopped,
    )
    try:
        with ends.ends_at_once(run, held, stop, progress):
            yield held
    finally:
        try:
            held.release()
        except StorageError as error:  # the run has its result; the lease expires
            log.warning("cannot release the lease: %s", error)


def _record_end(session: Session, code: ExitCode, result: AttemptResult, num_before: int) -> None:
    run, step, progress, notifier = session.run, result.step, session.progress, session.notifier
    progress.close()
    if code is not ExitCode.OK and ends.record_stop(run, code, step, num_before):
        lines = [f"stopped before the next attempt made a step; {ends.newest_checkpoint(step)}; {ends.RESUMES}"]
        notifier.notify("stopped", lines[0], step=step, exit_code=int(code))
    elif not result.trained:
        lines = [NOTHING_TRAINED]
        notifier.notify("stopped", lines[0], step=step, exit_code=int(code))
    elif code is ExitCode.OK:
        times = {"command_s": time.monotonic() - progress.began, "start_s": progress.start_s}
        summary = {
            **result.summary(),
            **times,
            "images_per_s": images_per_s(run),
            "duration": str(session.config.duration),
        }
        if target := recorded.target_of(session.config):
            summary["stop_at"] = target
        run.mark_finished(summary)
        from launcher.planning import history

        history.remember(run)
        early = result.measured.get("target_reached")
        done = f"the target was reached after {step} steps" if early else f"all {step} steps done"
        notifier.notify("finished", done, step=step, exit_code=int(code))
        lines = summary_lines(run, summary)
    else:
        event = "preempted" if result.preempted else "stopped"
        notifier.notify(event, f"saved at step {step}", step=step, exit_code=int(code))
        lines = [f"saved at step {step}; {ends.RESUMES}", *profile_lines(run)]
    for line in lines:
        progress.print(line)


if __name__ == "__main__":
    exit_code = main(stop=_STOP, first=_FIRST)
    _STOP.ignore()
    sys.exit(exit_code)

"""`launcher cancel RUN|CONFIG [--save|--now]`: stop a run with a checkpoint, or kill it; it is not restarted.

A submitted run is stopped through its scheduler, a run that was started by hand through its process.
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

from launcher.commands import schedulers, target
from launcher.errors import UsageError
from launcher.run import status as run_state
from launcher.run.directory import RunDirectory
from launcher.run.holder import Holder
from launcher.run.status import LeaseState
from launcher.run.submissions import refuse_distrusted
from resnet_dist.checkpoint.disk import storage_errors


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--save|--now]"""
    verb = verbs.add_parser("cancel", help="stop a run, with a checkpoint or at once")
    target.add_arguments(verb)
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--save", action="store_true", help="save at the next step, then stop (the default)")
    how.add_argument("--now", action="store_true", help="kill it; work after the newest checkpoint is lost")
    verb.set_defaults(run=_cancel)


def _cancel(given: argparse.Namespace) -> int:
    found, save = target.find(given), not given.now
    if found.is_here:
        refuse_distrusted(found.run)
    held = run_state.lease_state(found.run) if found.is_here else LeaseState(None, False)
    submission = found.submission
    if submission is not None and schedulers.ask(submission, found.address).state != "gone":
        # Ray's own stop leaves a driver 3 s, not enough to save a large model.
        if save and held.alive and submission.place == "ray" and ask_to_save(found.run):
            print(f"{submission}: asked to save and stop")
        else:
            print(schedulers.stop(submission, save=save, address=found.address))
    elif held.alive:
        print(_stop_process(found.run, held, save=save))
    else:
        gone = "" if submission is None else f", and {submission} has ended"
        print(f"{found.run.path}: no process runs here{gone}; nothing to cancel")
    return 0


def ask_to_save(run: RunDirectory) -> bool:
    """Ask the newest attempt's workers to save and stop, through the storage; False if no attempt is running."""
    attempts = run.attempts()
    if not attempts or attempts[-1].ended is not None:
        return False
    file = run.logs(attempts[-1].number).stop_request
    with storage_errors(file):
        file.touch()
    return True


def _stop_process(run: RunDirectory, held: LeaseState, *, save: bool) -> str:
    holder = held.holder
    assert holder is not None  # it is alive
    if isinstance(holder, Holder) and holder.is_here():
        if not holder.signal(signal.SIGUSR2 if save else signal.SIGKILL):
            return f"{run.path}: process {holder.pid} has ended or belongs to another user; no signal was sent"
        what = "saves and stops" if save else "was killed; work after the newest checkpoint is lost"
        return f"{run.path}: process {holder.pid} {what}"
    if save and ask_to_save(run):
        return f"{run.path}: {holder} was asked to save and stop (in the run directory)"
    kill = f"`kill -{'USR2' if save else 'KILL'} {holder.pid}`" if isinstance(holder, Holder) else "stop it"
    raise UsageError(
        f"{run.path}: {holder} runs it and was not submitted. Allowed: {kill} there" + ("" if save else ", or --save")
    )

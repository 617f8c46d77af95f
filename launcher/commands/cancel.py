"""`launcher cancel RUN|CONFIG [--save|--now]`: end a run with a checkpoint, or at once; it is not started again.

A run that was submitted is ended through its place, one that was started by hand through its process: the same verb.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

from launcher.commands import schedulers, target
from launcher.errors import UsageError
from launcher.run import status as run_state
from launcher.run.directory import RunDirectory
from launcher.run.status import Held
from resnet_dist.checkpoint.disk import storage_errors


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--save|--now]"""
    verb = verbs.add_parser("cancel", help="end a run, with a checkpoint or at once")
    target.add_arguments(verb)
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--save", action="store_true", help="save at the next step, then end (the default)")
    how.add_argument("--now", action="store_true", help="kill it; the newest checkpoint counts")
    verb.set_defaults(run=_cancel)


def _cancel(given: argparse.Namespace) -> int:
    found, save = target.find(given), not given.now
    held = run_state.lease_of(found.run) if found.is_here else Held(None, False)
    submission, told = found.submission, False
    if submission is not None:
        word = schedulers.ask(submission)
        if word.state != "gone":
            if save and held.alive and submission.place == "ray":
                told = ask_to_save(found.run)  # Ray's own stop leaves a driver 3 s, too few for a large model
            if not told:
                print(schedulers.stop(submission, save=save))
            else:
                print(f"{submission}: asked to save and end")
            return 0
    if not held.alive:
        reason = "" if submission is None else f"{submission} is gone"
        print(f"{found.run.path}: no process is at work in this run{f'; {reason}' if reason else ''}: nothing to end")
        return 0
    print(_end_process(found.run, held, save=save))
    return 0


def ask_to_save(run: RunDirectory) -> bool:
    """Ask the newest attempt's workers to save and end, through the storage; False where none is under way."""
    attempts = run.attempts()
    if not attempts or attempts[-1].ended is not None:
        return False
    file = run.logs(attempts[-1].number).stop_request
    with storage_errors(file):
        file.touch()
    return True


def _end_process(run: RunDirectory, held: Held, *, save: bool) -> str:
    holder = held.holder
    assert holder is not None  # it is alive
    if holder.is_here():
        os.kill(holder.pid, signal.SIGUSR2 if save else signal.SIGKILL)
        what = "saves and ends" if save else "is killed; the newest checkpoint counts"
        return f"{run.path}: process {holder.pid} {what}"
    if save and ask_to_save(run):
        return f"{run.path}: process {holder.pid} on {holder.host} is asked to save and end, through the run directory"
    raise UsageError(
        f"{run.path}: process {holder.pid} runs on {holder.host}, and was not submitted from here. Allowed: "
        f"`kill -{'USR2' if save else 'KILL'} {holder.pid}` there" + ("" if save else ", or --save")
    )

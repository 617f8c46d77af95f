"""One attempt of a run on this machine, in a process of its own: started by `launcher.local.supervisor`.

The job comes pickled on standard input, from the process that started this one; messages go back through a pipe.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from launcher.console import Progress
from launcher.errors import LauncherError, UserCodeError
from launcher.run.directory import RunDirectory
from launcher.signals import StopSignals
from resnet_dist.errors import TrainingError

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(pipe: int, parent: int) -> None:
    """Carry out the job. Messages: ("begun", attempt, first step), then ("outcome", code, dict) or ("error", error)."""
    _die_with(parent)
    # A second Ctrl-C is the parent's to obey: it may have passed on the first, which the terminal told this one, too.
    with StopSignals(on_again=lambda: None) as signals, Connection(pipe, readable=False) as answer:
        job: dict[str, Any] = pickle.load(sys.stdin.buffer)
        from launcher.local.run import run_local  # after the signals' handlers: it imports torch, which takes seconds

        try:
            run = RunDirectory(job["storage"], job["config"].name)
            code, outcome = run_local(
                job["config"],
                run,
                job["mode"],
                Progress(),
                signals=signals,
                watched=True,
                records_failure=False,
                skips=job["skips"],
                num_micro_batches=job["num_micro_batches"],
                claim=job["claim"],
                on_begin=lambda attempt, start: answer.send(("begun", attempt, start.step)),
            )
            answer.send(("outcome", int(code), outcome))
        except Exception as error:
            answer.send(("error", portable(error)))


def portable(error: Exception) -> Exception:
    """`error`, in a class that can be read by a process without torch and without the user's modules."""
    if isinstance(error, LauncherError | TrainingError):
        return error
    told = UserCodeError(type(error).__name__, str(error))
    told.add_note("".join(traceback.format_exception(error)))
    return told


def _die_with(parent: int) -> None:
    """End when the process that started this one ends: nobody would restart or stop this one then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

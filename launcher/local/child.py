"""One attempt of a run in a child process of `launcher.local.supervisor`.

The job comes pickled on standard input; messages go back through a pipe.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import LauncherError, UserCodeError
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.run.directory import RunDirectory
from launcher.run.lease import Claim
from launcher.signals import StopSignals
from resnet_dist.errors import TrainingError

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Job:
    """What the parent sends."""

    config: RunConfig
    mode: ResumeMode
    claim: Claim | None = None
    num_micro_batches: int | None = None


# What the child sends: the start of the attempt, then its exit code and result, or an error.
Message = AttemptSpec | tuple[int, AttemptResult] | Exception


def main(pipe: int, parent: int) -> None:
    """Receive a job, carry it out, and send the messages."""
    _die_with(parent)
    # The parent handles a second Ctrl-C: the first one may reach this process twice, from the terminal and from it.
    with StopSignals(on_again=lambda: None) as signals, Connection(pipe, readable=False) as answer:
        job: Job = pickle.load(sys.stdin.buffer)
        from launcher.local.run import Parent, run_local  # imports torch: seconds in which signals are handled already

        try:
            run = RunDirectory(Path(job.config.storage), job.config.name)
            link = Parent(signals, job.num_micro_batches, on_begin=answer.send)
            code, result = run_local(job.config, run, job.mode, Progress(), watched=True, claim=job.claim, parent=link)
            answer.send((int(code), result))
        except Exception as error:
            answer.send(portable(error))


def portable(error: Exception) -> Exception:
    """`error` in a class that a process without torch and without the user's modules can unpickle."""
    if isinstance(error, LauncherError | TrainingError):
        return error
    translated = UserCodeError(type(error).__name__, str(error))
    translated.add_note("".join(traceback.format_exception(error)))
    return translated


def _die_with(parent: int) -> None:
    """End this process when its parent ends, since nothing would restart or stop it then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

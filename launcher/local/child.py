"""One attempt of a run in a child process of `launcher.local.supervisor`.

The job comes pickled on standard input; messages go back through a pipe.
"""

from __future__ import annotations

import atexit
import os

if __name__ == "__main__":  # before other imports: what is registered first is called last
    _SENT: list[object] = []
    # If the parent knows the result, this process ends at once: Python needs seconds to take PyTorch's modules apart.
    atexit.register(lambda: os._exit(0) if _SENT else None)

import ctypes
import pickle
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from launcher import streams
from launcher.config.schema import RunConfig
from launcher.local.to_parent import Told, ToParent
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.recovery.portable import portable
from launcher.run.directory import RunDirectory
from launcher.run.lease import Claim
from launcher.signals import StopSignals

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Job:
    """What the parent sends."""

    config: RunConfig
    mode: ResumeMode
    claim: Claim | None = None
    num_micro_batches: int | None = None


# What the child sends: the start of the attempt and what is to be seen, then its exit code and result, or an error.
Message = AttemptSpec | Told | tuple[int, AttemptResult] | Exception


def main(pipe: int, parent: int, sent: list[object]) -> None:
    """Receive a job, carry it out, and send the messages. The last one is appended to `sent`, too."""
    streams.protect()
    die_with(parent)
    # The parent handles a second Ctrl-C: the first one may reach this process twice, from the terminal and from it.
    stop = StopSignals("ignore", announce=False).install()
    with Connection(pipe, readable=False) as answer:
        try:
            last: Message = _carry_out(pickle.load(sys.stdin.buffer), answer, stop)
        except BaseException as error:  # the user's code may raise SystemExit, too
            last = portable(error)
        answer.send(last)
    stop.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    sent.append(last)


def _carry_out(job: Job, answer: Connection, stop: StopSignals) -> tuple[int, AttemptResult]:
    from launcher.local.run import Parent, run_local  # imports torch: seconds in which signals are handled already

    run = RunDirectory(Path(job.config.storage), job.config.name)
    link = Parent(job.num_micro_batches, on_begin=answer.send)
    progress = ToParent(answer)
    code, result = run_local(job.config, run, job.mode, progress, stop, watched=True, claim=job.claim, parent=link)
    return int(code), result


def die_with(parent: int) -> None:
    """End this process when its parent ends, since nothing would restart or stop it then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), _SENT)

"""One attempt of a run in a child process of `launcher.local.supervisor`.

The job comes pickled on standard input; messages go back through a pipe.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from launcher import streams
from launcher.config.schema import RunConfig
from launcher.console import Progress
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


@dataclass(frozen=True)
class Told:
    """What a person should see: a call of a method of the parent's `Progress`."""

    method: Literal["print", "record"]
    content: Any


# What the child sends: the start of the attempt and what is to be seen, then its exit code and result, or an error.
Message = AttemptSpec | Told | tuple[int, AttemptResult] | Exception


class ToParent(Progress):
    """Passes on to the parent, which has the terminal, what is to be seen; lost while the parent does not read."""

    def __init__(self, answer: Connection) -> None:
        super().__init__(sys.stdout)
        self._answer = answer

    def print(self, text: str) -> None:
        """Pass on a line."""
        self._tell(Told("print", text))

    def stage(self, text: str | None, began: float | None = None) -> None:
        """Stages before the first record are the parent's."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Pass on a record."""
        if record.get("kind") != "layers":  # large, and not shown
            self._tell(Told("record", dict(record)))

    def _tell(self, told: Told) -> None:
        _, ready, _ = select.select([], [self._answer], [], 0)
        if ready:  # a pipe that is full would stop the training
            self._answer.send(told)


def main(pipe: int, parent: int) -> None:
    """Receive a job, carry it out, and send the messages."""
    streams.protect()
    die_with(parent)
    # The parent handles a second Ctrl-C: the first one may reach this process twice, from the terminal and from it.
    stop = StopSignals("ignore", announce=False).install()
    with Connection(pipe, readable=False) as answer:
        try:
            answer.send(_carry_out(pickle.load(sys.stdin.buffer), answer, stop))
        except BaseException as error:  # the user's code may raise SystemExit, too
            answer.send(portable(error))
    stop.ignore()


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
    main(int(sys.argv[1]), int(sys.argv[2]))

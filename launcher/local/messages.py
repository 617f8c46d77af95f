"""The messages between a worker process on this machine and its parent: pickled, through a socket pair."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config.schema import RunConfig
from launcher.local.to_parent import ProgressCall
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.run.lease import Claim


@dataclass(frozen=True)
class Job:
    """One attempt of one worker, from the parent."""

    config: RunConfig
    mode: ResumeMode
    claim: Claim | None = None
    num_micro_batches: int | None = None
    rank: int = 0
    world_size: int = 1
    rendezvous: str = ""  # path of the file through which the workers find each other; empty for a single one
    memory: tuple[int, int] | None = None  # (step, rank) of the worker whose memory the attempt starts from


@dataclass(frozen=True)
class Abandon:
    """The attempt has failed on another worker: end its collectives, from the parent."""


@dataclass(frozen=True)
class Ready:
    """All imports are done: the process waits for its first job."""


@dataclass(frozen=True)
class Failed:
    """The attempt has failed in this process, which can take another job."""

    error: Exception
    kept_step: int | None = None  # completed steps of the state that the process has in memory
    is_current: bool = True  # whether the code that it has imported has not changed on disk since


# The end of an attempt: its exit code and its result, or an error.
End = tuple[int, AttemptResult] | Failed

# From the worker. In an attempt: its start, what the parent shows, its end.
Message = Ready | AttemptSpec | ProgressCall | End

# From the parent. None: there will be no other job.
Order = Job | Abandon | None

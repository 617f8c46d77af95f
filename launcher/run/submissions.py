"""What was submitted of a run, and where: RUN/submissions.jsonl, one JSON object a line, the newest last.

    {"place": "slurm", "id": "4711", "time": "...", "host": "login1", "details": {}}

`details` are what is needed to ask for it again: namespace and context of Kubernetes, address of a Ray cluster. Nothing
secret is among them.

What a place starts has the name of its submission in the environment (LAUNCHER_SUBMISSION): the same in all starts of
one submission, so that what has ended for good is not repeated, and what still saves is waited for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from cluster.kubernetes.pods import SUBMISSION_VARIABLE
from launcher.run.directory import RunDirectory, utc_now
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.telemetry import json_lines

Place = Literal["slurm", "kubernetes", "ray"]


@dataclass(frozen=True)
class Submission:
    """One job that was handed to a place."""

    place: Place
    id: str
    time: str  # ISO 8601, UTC
    host: str  # where it was submitted from
    details: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.place} job {self.id}"


def current() -> str:
    """The submission that this process was started for; empty where a person has started it."""
    return os.environ.get(SUBMISSION_VARIABLE, "")


def now(place: Place, name: str, details: Mapping[str, str] | None = None) -> Submission:
    """A submission of this moment, from this host."""
    return Submission(place, name, utc_now(), socket.gethostname(), dict(details or {}))


def record(run: RunDirectory, submission: Submission) -> None:
    """Append a submission; the run directory is made if need be. Raises StorageError."""
    with storage_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        json_lines.append(run.submissions, asdict(submission))


def read(run: RunDirectory) -> list[Submission]:
    """All submissions, oldest first; records of other fields are ignored. Raises StorageError."""
    with storage_errors(run.submissions):
        try:
            records = json_lines.read(run.submissions)
        except FileNotFoundError:
            return []
    found = []
    for one in records:
        with contextlib.suppress(TypeError):
            found.append(Submission(**one))
    return found


def newest(run: RunDirectory) -> Submission | None:
    """The newest submission; None where there is none."""
    return next(iter(reversed(read(run))), None)


JobState = Literal["pending", "running", "gone", "unreachable"]


@dataclass(frozen=True)
class JobStatus:
    """What a place says of a job.

    `unreachable` is no answer: the job may be well. `exit_code` is the driver's own, where the place knows it.
    """

    state: JobState
    reason: str = ""
    exit_code: int | None = None

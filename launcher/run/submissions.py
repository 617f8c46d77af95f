"""The submissions of a run: RUN/submissions.jsonl, one JSON object a line, newest last.

    {"place": "slurm", "id": "4711", "time": "...", "host": "login1", "details": {}}

`details` identify the job for later queries: namespace and context on Kubernetes, the address of a Ray cluster. They
contain no secrets.

A scheduler starts a run with the name of its submission in the environment (LAUNCHER_SUBMISSION), the same for all
starts of one submission. A start does not repeat a submission that failed for good, and waits for a predecessor that
is still saving.
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
JobState = Literal["pending", "running", "gone", "unreachable"]


@dataclass(frozen=True)
class Submission:
    """A job that was submitted to a scheduler."""

    place: Place
    id: str
    time: str  # ISO 8601, UTC
    host: str  # it was submitted from
    details: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.place} job {self.id}"


@dataclass(frozen=True)
class JobStatus:
    """A scheduler's report of a job.

    `unreachable`: no answer from the scheduler; the job may run. `exit_code` is the driver's, if it is known.
    """

    state: JobState
    reason: str = ""
    exit_code: int | None = None


def current() -> str:
    """The submission that started this process; empty if a person started it."""
    return os.environ.get(SUBMISSION_VARIABLE, "")


def now(place: Place, name: str, details: Mapping[str, str] | None = None) -> Submission:
    """A submission made now, from this host."""
    return Submission(place, name, utc_now(), socket.gethostname(), dict(details or {}))


def record(run: RunDirectory, submission: Submission) -> None:
    """Append a submission; creates the run directory if needed. Raises StorageError."""
    with storage_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        json_lines.append(run.submissions, asdict(submission))


def read(run: RunDirectory) -> list[Submission]:
    """All submissions, oldest first; records with other fields are ignored. Raises StorageError."""
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
    """The newest submission; None without one."""
    return next(reversed(read(run)), None)

"""What was submitted of a run, and where: RUN/submissions.jsonl, one JSON object a line, the newest last.

    {"place": "slurm", "id": "4711", "time": "...", "host": "login1", "details": {}}

`details` are what is needed to ask for it again: namespace and context of Kubernetes, address of a Ray cluster. Nothing
secret is among them.

What a place starts has the name of its submission in the environment (LAUNCHER_SUBMISSION): the same in all starts of
one submission, so that what has ended for good is not repeated, and what still saves is waited for.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from cluster.kubernetes_pods import SUBMISSION_VARIABLE
from launcher.run_directory import RunDirectory
from resnet_dist.checkpoint.disk import storage_errors

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


def file(run: RunDirectory) -> Path:
    """Where a run's submissions are."""
    return run.path / "submissions.jsonl"


def now(place: Place, name: str, details: Mapping[str, str] | None = None) -> Submission:
    """A submission of this moment, from this host."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Submission(place, name, time, socket.gethostname(), dict(details or {}))


def record(run: RunDirectory, submission: Submission) -> None:
    """Append a submission; the run directory is made if need be. Raises StorageError."""
    line = (json.dumps(asdict(submission)) + "\n").encode()
    with storage_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    with storage_errors(file(run)), file(run).open("ab") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read(run: RunDirectory) -> list[Submission]:
    """All submissions, oldest first; lines that are none are passed over. Raises StorageError."""
    with storage_errors(file(run)):
        try:
            lines = file(run).read_bytes().splitlines()
        except FileNotFoundError:
            return []
    found = []
    for line in lines:
        try:
            found.append(Submission(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def newest(run: RunDirectory) -> Submission | None:
    """The newest submission; None where there is none."""
    return next(iter(reversed(read(run))), None)

"""The submissions of a run: RUN/submissions.jsonl, one JSON object a line, newest last.

    {"place": "slurm", "id": "4711", "time": "...", "host": "login1", "details": {}}

`details` identify the job for later queries: namespace and context on Kubernetes, the address of a Ray cluster. They
contain no secrets.

A scheduler starts a run with the name of its submission in the environment (LAUNCHER_SUBMISSION), the same for all
starts of one submission. A start does not repeat a submission that failed for good, and waits for a predecessor that
is still saving.

A record is used in requests with this user's rights. So its ids must have the form that their scheduler gives them, and
nothing is sent because of a record that somebody else may have written.
"""

from __future__ import annotations

import dataclasses
import pwd
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from cluster.kubernetes.names import is_label, is_service_name
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from launcher.run.record_types import read_lines, utc_now
from resnet_dist.checkpoint.disk import make_folder, storage_errors
from resnet_dist.input_files import is_ours
from resnet_dist.telemetry import json_lines

_SLURM_JOB = re.compile(r"[0-9]{1,10}(_[0-9]{1,10})?")  # JOB, or JOB_TASK of an array
_RAY_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # Ray's own: raysubmit_ and 16 letters and digits
_ADDRESS = re.compile(r"https?://[^\s\x00-\x20]+")
_CONTEXT = re.compile(r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,252}")  # of a kubeconfig, where any name is allowed

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
    distrust: str = field(default="", compare=False)  # not recorded: why nothing is sent because of this record

    def __post_init__(self) -> None:
        details = self.details
        match self.place:
            case "slurm":
                valid = _SLURM_JOB.fullmatch(self.id) is not None
            case "kubernetes":
                namespace, context = details.get("namespace", "default"), details.get("context", "default")
                valid = is_service_name(self.id) and is_label(namespace) and _CONTEXT.fullmatch(context) is not None
            case "ray":
                valid = _RAY_JOB.fullmatch(self.id) is not None
                valid = valid and _ADDRESS.fullmatch(details.get("address", "http://localhost")) is not None
        if not valid:
            raise ValueError(f"{self.place} has no job {self.id!r} with {dict(details)}")

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


def now(place: Place, name: str, details: Mapping[str, str] | None = None) -> Submission:
    """A submission made now, from this host."""
    return Submission(place, name, utc_now(), socket.gethostname(), dict(details or {}))


def record(run: RunDirectory, submission: Submission) -> None:
    """Append a submission; creates the run directory if needed. Raises StorageError."""
    make_folder(run.path)
    with storage_errors(run.path):
        content = asdict(submission)
        del content["distrust"]
        json_lines.append(run.submissions, content)


def read(run: RunDirectory) -> list[Submission]:
    """All submissions, oldest first. Lines that cannot be read are ignored and logged. Raises StorageError."""
    return read_lines(run.submissions, Submission)


def newest(run: RunDirectory) -> Submission | None:
    """The newest submission; None without one. `distrust` is set if somebody else may have written it."""
    found = read(run)
    return dataclasses.replace(found[-1], distrust=distrust(run)) if found else None


def distrust(run: RunDirectory) -> str:
    """Why nothing is sent because of a record in this run directory; empty if only this user can have written it."""
    for path in (run.path, run.submissions, run.lease):
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return f"everybody may write to {path}. Allowed: after `chmod o-w`, if its content is yours"
        if not is_ours(found.st_uid, run.path):
            return f"{path} belongs to {_user(found.st_uid)}. Allowed: the same command as that user"
    return ""


def refuse_distrusted(run: RunDirectory) -> None:
    """Raise UsageError if somebody else may have written the records of this run directory."""
    if problem := distrust(run):
        raise UsageError(f"nothing is stopped because of a record that somebody else may have written: {problem}")


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"

"""The run directory: where everything that a run leaves behind has its place.

    STORAGE/NAME/
        config.yaml          the resolved config          environment.json   versions, host, commit
        attempts.jsonl       starts and ends              metrics.jsonl      what the trainer measured
        tensorboard/         checkpoints/step-00000042/   index/             tables of samples
        logs/attempt-1/rank-0.log                         report.html
        incidents/attempt-1/summary.txt                   lease/             who is at work here
        FINISHED             the run reached its end      FATAL              it ended for good before

Writes are atomic: a reader, at any moment and after any kill, finds an old content or a new one, never half of it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.disk import replace_whole, storage_errors, sync_folder
from resnet_dist.errors import StorageError
from resnet_dist.sink import without_non_finite

_PACKAGES = (
    "resnet-launcher",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "ray",
    "deepspeed",
    "nvidia-dali-cuda130",
)
_VARIABLES = ("NCCL_", "GLOO_", "OMP_")  # what changes the speed or the numerics of a run
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
_GIT_TIMEOUT_S = 10  # assumption: a repository on a slow shared file system answers in this time, or goes unrecorded


@dataclass(frozen=True)
class Attempt:
    """One start of the run. What only its end knows is None while it runs, and for ever when it was killed."""

    number: int  # from 1
    started: str  # ISO 8601, UTC
    facts: Mapping[str, Any] = field(default_factory=dict)  # as given to begin_attempt
    ended: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    last_step: int | None = None
    end_facts: Mapping[str, Any] = field(default_factory=dict)  # as given to end_attempt


@dataclass(frozen=True)
class Fatal:
    """Why the run ended for good."""

    exit_code: int
    message: str
    time: str  # ISO 8601, UTC
    kind: str = ""  # the class of errors, as `launcher.faults` answers it
    submission: str = ""  # that it happened to; empty where a person started the run


@dataclass(frozen=True)
class RunDirectory:
    """The run called `name` under the folder `storage`. Writing raises StorageError."""

    storage: Path
    name: str

    @property
    def path(self) -> Path:
        """The run directory itself."""
        return self.storage / self.name

    @property
    def config(self) -> Path:
        """The config as it was resolved: paths absolute, defaults filled in."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, host and commit of the newest attempt."""
        return self.path / "environment.json"

    @property
    def attempts_file(self) -> Path:
        """Starts and ends of attempts, one JSON object a line."""
        return self.path / "attempts.jsonl"

    @property
    def metrics(self) -> Path:
        """What the trainer measured; `resnet_dist.sink.read_metrics` reads it."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def lease(self) -> Path:
        """The folder of the lease that keeps two processes out of one run."""
        return self.path / "lease"

    @property
    def index(self) -> Path:
        """Tables of samples."""
        return self.path / "index"

    @property
    def report(self) -> Path:
        """The report, once it was asked for."""
        return self.path / "report.html"

    @property
    def finished_file(self) -> Path:
        """There once the run reached its end."""
        return self.path / "FINISHED"

    @property
    def fatal_file(self) -> Path:
        """There once the run ended for good before its end."""
        return self.path / "FATAL"

    def logs(self, attempt: int) -> Path:
        """The folder of an attempt's logs."""
        return self.path / "logs" / f"attempt-{attempt}"

    def incident(self, attempt: int) -> Path:
        """The folder of what is known of an attempt's failure."""
        return self.path / "incidents" / f"attempt-{attempt}"

    def log(self, attempt: int, rank: int) -> Path:
        """One worker's log of an attempt."""
        return self.logs(attempt) / f"rank-{rank}.log"

    def create(self) -> None:
        """Make the folders that every run has; those that are there stay as they are."""
        for folder in (self.path, self.tensorboard, self.checkpoints, self.index, self.path / "logs"):
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def write_config(self, text: str) -> None:
        """Record the resolved config."""
        with storage_errors(self.config):
            replace_whole(self.config, text.encode())

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Record what `environment()` collected."""
        self._write_json(self.environment, facts)

    def begin_attempt(self, facts: Mapping[str, Any] | None = None) -> int:
        """Record a start with its `facts` (workers, place, ...); return the attempt's number, from 1.

        The number is nobody else's, even when two launchers start at once. FINISHED and FATAL of earlier attempts
        are removed: whoever begins has read them and goes on all the same.
        """
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        with storage_errors(self.path):
            self.logs(number).parent.mkdir(parents=True, exist_ok=True)
            while not _made(self.logs(number)):
                number += 1
            self.finished_file.unlink(missing_ok=True)
            self.fatal_file.unlink(missing_ok=True)
            sync_folder(self.path)
        start = {
            "event": "started",
            "attempt": number,
            "time": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._append({**start, "facts": dict(facts or {})})
        return number

    def end_attempt(
        self,
        number: int,
        exit_code: int,
        cause: str,
        last_step: int | None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record an end: its exit code, why in words, and the last completed step where one is known.

        `facts` of a failure: class, rank, node, checkpoint_step, steps_redone, seconds_lost, nodes, decision.
        """
        end = {"event": "ended", "attempt": number, "time": _now()}
        self._append(
            {**end, "exit_code": exit_code, "cause": cause, "last_step": last_step, "facts": dict(facts or {})}
        )

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first. A line that a kill left torn is passed over."""
        attempts: dict[int, Attempt] = {}
        for record in self._attempt_records():
            number = record["attempt"]
            if record["event"] == "started":
                attempts[number] = Attempt(number, record["time"], record["facts"])
            elif number in attempts:
                begun = attempts[number]
                end = (
                    record["time"],
                    record["exit_code"],
                    record["cause"],
                    record["last_step"],
                    record.get("facts", {}),
                )
                attempts[number] = Attempt(number, begun.started, begun.facts, *end)
        return [attempts[number] for number in sorted(attempts)]

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        """Record that the run reached its end. A number that is not finite is written as null."""
        self._write_json(self.finished_file, {**summary, "time": _now()})

    def mark_fatal(self, code: int, message: str, *, kind: str = "", submission: str = "", keep: bool = False) -> None:
        """Record that the run ended for good: its exit code and why. `keep`: what is recorded already stays."""
        end = Fatal(code, message, _now(), kind, submission)
        self._write_json(self.fatal_file, asdict(end), keep=keep)

    def is_finished(self) -> bool:
        """Whether the run reached its end."""
        return self.finished_file.exists()

    def summary(self) -> dict[str, Any] | None:
        """What `mark_finished` was given, and the time; None while the run is not finished."""
        return self._read_json(self.finished_file)

    def fatal(self) -> Fatal | None:
        """Why the run ended for good; None where it did not."""
        content = self._read_json(self.fatal_file)
        return None if content is None else Fatal(**content)

    def _write_json(self, path: Path, content: Mapping[str, Any], *, keep: bool = False) -> None:
        with storage_errors(path):
            text = json.dumps(without_non_finite(content), indent=2, allow_nan=False) + "\n"
            replace_whole(path, text.encode(), keep=keep)

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageError(str(path), f"cannot be read ({error}); move it away to go on") from error
        return content

    def _append(self, record: Mapping[str, Any]) -> None:
        """One line, whole or torn; a torn one does not spoil the next, and readers pass over it."""
        path = self.attempts_file
        with storage_errors(path), path.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write((json.dumps(without_non_finite(record), allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _attempt_records(self) -> list[dict[str, Any]]:
        try:
            lines = self.attempts_file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(str(self.attempts_file), f"cannot be read: {error.strerror}") from error
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # torn: `_append` has begun a new line after it
        return records


def environment() -> dict[str, Any]:
    """What a run should be judged by beside its config: versions, host, commit. Never a secret.

    Versions are read from the installed packages' metadata, so nothing is imported.
    """
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    return {
        "time": _now(),
        "python": platform.python_version(),
        "packages": versions,
        "system": platform.platform(),
        "host": socket.gethostname(),
        "num_cpus": os.cpu_count(),
        "num_cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "git": _git(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if _is_recorded(name)},
    }


def _is_recorded(variable: str) -> bool:
    return variable.startswith(_VARIABLES) and not any(word in variable.upper() for word in _SECRET_WORDS)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the repository that the current folder is in, and whether tracked files differ from it."""
    commit = _git_output("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git_output("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else changes != ""}


def _git_output(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _made(folder: Path) -> bool:
    """Make `folder`; False where it is there already."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

"""The run directory: where everything that a run leaves behind has its place.

    STORAGE/NAME/
        config.yaml          the resolved config          environment.json   versions, host, commit
        attempts.jsonl       starts and ends              metrics.jsonl      what the trainer measured
        tensorboard/         checkpoints/step-00000042/   index/             tables of samples
        logs/attempt-1/rank-0.log                         skips.json         samples that were passed over
        profiles/attempt-1/                               submissions.jsonl  jobs that were handed to a scheduler
        incidents/attempt-1/summary.txt                   lease/             who is at work here
        FINISHED             the run reached its end      FATAL              it ended for good before

Writes are atomic: a reader, at any moment and after any kill, finds an old content or a new one, never half of it.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.disk import replace_whole, storage_errors, sync_folder
from resnet_dist.errors import StorageError
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.json_lines import without_non_finite


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
    kind: str = ""  # the class of errors, as `launcher.recovery.faults` answers it
    submission: str = ""  # that it happened to; empty where a person started the run


@dataclass(frozen=True)
class AttemptLogs:
    """logs/attempt-N/: the workers' logs, and the files through which an attempt's processes reach each other."""

    path: Path

    def log(self, rank: int) -> Path:
        """One worker's log."""
        return self.path / f"rank-{rank}.log"

    def logs(self) -> list[Path]:
        """The logs that there are, in no order."""
        return list(self.path.glob("rank-*.log"))

    @property
    def heartbeats(self) -> Path:
        """The folder of the workers' heartbeats."""
        return self.path / "heartbeat"

    def heartbeat(self, rank: int) -> Path:
        """One worker's heartbeat."""
        return self.heartbeats / f"rank-{rank}"

    @property
    def environment(self) -> Path:
        """Versions, host and commit of this attempt."""
        return self.path / "environment.json"

    @property
    def stop_request(self) -> Path:
        """Once it exists, the workers save and stop."""
        return self.path / "stop"

    @property
    def dump_request(self) -> Path:
        """Once it exists, the workers write what their threads are doing."""
        return self.path / "dump"

    @property
    def end_request(self) -> Path:
        """Once it exists, the workers end without saving."""
        return self.path / "end"

    @property
    def stacks(self) -> Path:
        """The folder of what the workers' threads were doing: rank-K.txt."""
        return self.path / "stacks"

    @property
    def flight(self) -> Path:
        """The folder of the workers' last collectives: rank-K.json."""
        return self.path / "flight"

    def preemption_notice(self, rank: int) -> Path:
        """Written by a worker whose node will be taken away."""
        return self.path / f"notice-rank-{rank}.json"

    def preemption_notices(self) -> list[Path]:
        """The notices that were written."""
        return list(self.path.glob("notice-rank-*.json"))


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
        """What the trainer measured; `resnet_dist.telemetry.metrics_file.read_metrics` reads it."""
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
    def submissions(self) -> Path:
        """Jobs that were handed to a scheduler, one JSON object a line."""
        return self.path / "submissions.jsonl"

    @property
    def skips(self) -> Path:
        """The samples that the run has passed over since the loss was not finite."""
        return self.path / "skips.json"

    @property
    def profiles(self) -> Path:
        """Profiles, a folder an attempt."""
        return self.path / "profiles"

    @property
    def finished_file(self) -> Path:
        """There once the run reached its end."""
        return self.path / "FINISHED"

    @property
    def fatal_file(self) -> Path:
        """There once the run ended for good before its end."""
        return self.path / "FATAL"

    def logs(self, attempt: int) -> AttemptLogs:
        """An attempt's logs."""
        return AttemptLogs(self.path / "logs" / f"attempt-{attempt}")

    def profile(self, attempt: int) -> Path:
        """The folder of an attempt's profile."""
        return self.profiles / f"attempt-{attempt}"

    def incident(self, attempt: int) -> Path:
        """The folder of what is known of an attempt's failure."""
        return self.path / "incidents" / f"attempt-{attempt}"

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
            self.logs(number).path.parent.mkdir(parents=True, exist_ok=True)
            while not _made(self.logs(number).path):
                number += 1
            self.finished_file.unlink(missing_ok=True)
            self.fatal_file.unlink(missing_ok=True)
            sync_folder(self.path)
        start = {
            "event": "started",
            "attempt": number,
            "time": utc_now(),
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
        end = {"event": "ended", "attempt": number, "time": utc_now()}
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
        self._write_json(self.finished_file, {**summary, "time": utc_now()})

    def mark_fatal(self, code: int, message: str, *, kind: str = "", submission: str = "", keep: bool = False) -> None:
        """Record that the run ended for good: its exit code and why. `keep`: what is recorded already stays."""
        end = Fatal(code, message, utc_now(), kind, submission)
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
        with storage_errors(self.attempts_file):
            json_lines.append(self.attempts_file, record)

    def _attempt_records(self) -> list[dict[str, Any]]:
        try:
            return json_lines.read(self.attempts_file)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(str(self.attempts_file), f"cannot be read: {error.strerror}") from error


def _made(folder: Path) -> bool:
    """Make `folder`; False where it is there already."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def utc_now() -> str:
    """The time as the files of a run have it: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

"""The run directory: the paths of all files that a run writes, its attempts, and its end.

    STORAGE/NAME/
        config.yaml          the resolved config          environment.json   versions, host, commit
        attempts.jsonl       starts and ends              metrics.jsonl      what the trainer measured
        tensorboard/  wandb/ checkpoints/step-00000042/   index/             tables of samples
        logs/attempt-1/rank-0.log                         skips.json         windows of skipped samples
        profiles/attempt-1/                               submissions.jsonl  jobs submitted to a scheduler
        incidents/attempt-1/summary.txt                   requeues.jsonl     restarts of a SLURM job
        lease/               the process that runs it     output.log         what a run of a study prints
        pending-evaluations.json  of evaluate.beside      forecast.json      what was predicted of it
        FINISHED             all steps are done           FATAL              the run failed for good
    STORAGE/.indices/        tables of samples that the runs of a storage share
    STORAGE/.calibrations/   what `launcher plan --calibrate` has measured, a file for each configuration
    STORAGE/.runs.jsonl      work and times of finished runs, the evidence of forecasts

No other module spells these names. Writes are atomic: at any moment and after any kill, a reader finds the old content
or the new one. A file that cannot be read all the same (a damaged disk, another version, a person) is named, left out,
and renamed to NAME.unreadable by the next attempt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.kubernetes.pods import SUBMISSION_VARIABLE
from launcher.run.holder import Holder
from launcher.run.record_types import (
    Attempt,
    AttemptLine,
    Facts,
    Fatal,
    read_lines,
    read_record,
    summary_of,
    utc_now,
)
from resnet_dist.checkpoint.disk import make_folder, replace_whole, storage_errors, sync
from resnet_dist.input_files import check_link, record_of
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.json_lines import without_non_finite

_RANK_LOG = re.compile(r"rank-([0-9]{1,9})\.log")


class _Entry:
    """An attribute for the path of a file or folder in `path` of its owner."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: AttemptLogs | RunDirectory, kind: type) -> Path:
        return owner.path / self._name


@dataclass(frozen=True)
class AttemptLogs:
    """logs/attempt-N/: the workers' logs, and the files through which the processes of an attempt communicate."""

    path: Path

    environment = _Entry("environment.json")  # versions, host and commit of this attempt
    heartbeats = _Entry("heartbeat")  # folder of the workers' heartbeats
    stacks = _Entry("stacks")  # folder of the workers' stack traces
    flight = _Entry("flight")  # folder of torch's flight records
    stop_request = _Entry("stop")  # if it exists, the workers save and stop
    dump_request = _Entry("dump")  # if it exists, workers that make no progress write the stacks of their threads
    beside = _Entry("beside.log")  # what the process of evaluate.beside prints
    end_request = _Entry("end")  # if it exists, workers that make no progress exit without saving

    def log(self, rank: int) -> Path:
        """The log of one worker."""
        return self.path / f"rank-{rank}.log"

    def logs(self) -> list[Path]:
        """All existing logs, unordered."""
        return list(self.path.glob("rank-*.log"))

    def ranks(self) -> list[int]:
        """The ranks that have a log, ascending."""
        return sorted(int(match[1]) for path in self.logs() if (match := _RANK_LOG.fullmatch(path.name)))

    def heartbeat(self, rank: int) -> Path:
        """The heartbeat of one worker."""
        return self.heartbeats / f"rank-{rank}"

    def stack(self, rank: int) -> Path:
        """The stack traces of all threads of one worker."""
        return self.stacks / f"rank-{rank}.txt"

    def flight_record(self, rank: int) -> Path:
        """The last collectives of one worker."""
        return self.flight / f"rank-{rank}.json"

    def preemption_notice(self, rank: int) -> Path:
        """Written by a worker whose node received a preemption notice."""
        return self.path / f"notice-rank-{rank}.json"

    def preemption_notices(self) -> list[Path]:
        """All existing preemption notices."""
        return list(self.path.glob("notice-rank-*.json"))


@dataclass(frozen=True)
class RunDirectory:
    """The run `name` in the folder `storage`. Methods that write raise StorageError."""

    storage: Path
    name: str

    config = _Entry("config.yaml")  # the resolved config: absolute paths, all defaults
    environment = _Entry("environment.json")  # versions, host and commit of the newest attempt
    attempts_file = _Entry("attempts.jsonl")  # starts and ends of attempts
    metrics = _Entry("metrics.jsonl")  # the trainer's records: `resnet_dist.telemetry.metrics_file.read_metrics`
    tensorboard = _Entry("tensorboard")  # folder of TensorBoard's event files
    wandb = _Entry("wandb")  # folder of Weights & Biases: offline runs, and the id that later attempts continue
    checkpoints = _Entry("checkpoints")  # folder of checkpoints, one folder each
    lease = _Entry("lease")  # folder of the lease, which keeps a second process out of the run
    index = _Entry("index")  # folder of the tables of samples
    submissions = _Entry("submissions.jsonl")  # jobs that were submitted to a scheduler
    skips = _Entry("skips.json")  # windows of samples that the run skips because the loss was not finite
    requeues = _Entry("requeues.jsonl")  # restarts of a SLURM job by its script
    profiles = _Entry("profiles")  # folder of profiles, one folder per attempt
    all_logs = _Entry("logs")  # folder of the logs of all attempts, and of the output of SLURM jobs
    forecast = _Entry("forecast.json")  # what was predicted of the run's time and accuracy at its start
    pending_evaluations = _Entry("pending-evaluations.json")  # steps that evaluate.beside has still to evaluate
    output = _Entry("output.log")  # what a run of a study prints
    finished_file = _Entry("FINISHED")  # exists after the last step
    fatal_file = _Entry("FATAL")  # exists after the run failed for good

    @classmethod
    def at(cls, path: Path) -> RunDirectory:
        """The run directory whose folder is `path`."""
        return cls(path.parent, path.name)

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.storage / self.name

    @property
    def shared_index(self) -> Path:
        """The folder of the tables of samples that the runs of this storage share."""
        return self.storage / ".indices"

    def logs(self, attempt: int) -> AttemptLogs:
        """The logs of an attempt."""
        return AttemptLogs(self.all_logs / f"attempt-{attempt}")

    def profile(self, attempt: int) -> Path:
        """The folder of the profile of an attempt."""
        return self.profiles / f"attempt-{attempt}"

    def incident(self, attempt: int) -> Path:
        """The folder that describes the failure of an attempt."""
        return self.path / "incidents" / f"attempt-{attempt}"

    def incident_summary(self, attempt: int) -> Path:
        """The summary of the failure of an attempt, for a person."""
        return self.incident(attempt) / "summary.txt"

    def create(self) -> None:
        """Create the folders that every run has; existing ones stay as they are."""
        for folder in (self.path, self.tensorboard, self.checkpoints, self.index, self.all_logs):
            make_folder(folder)
        self.check_links()

    def check_links(self) -> None:
        """Raise StorageError if an entry is a link that belongs neither to this user nor to root."""
        with storage_errors(self.path):
            for entry in self.path.iterdir():
                check_link(entry)

    def write_config(self, text: str) -> None:
        """Write the resolved config."""
        with storage_errors(self.config):
            replace_whole(self.config, text.encode())

    def write_environment(self, facts: Facts) -> None:
        """Write the result of `launcher.run.environment.environment`."""
        _write_json(self.environment, facts)

    def begin_attempt(self, facts: Facts | None = None) -> int:
        """Record a start with its `facts` (workers, place, ...); return the attempt's number, from 1.

        The number is unique, even if two launchers start at once. FINISHED and FATAL of earlier attempts are removed:
        the caller has read them and continues the run. One that cannot be read is set aside.
        """
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        with storage_errors(self.path):
            self.all_logs.mkdir(parents=True, exist_ok=True)
            while not _mkdir_if_absent(self.logs(number).path):
                number += 1
            for file, content in ((self.finished_file, self.summary()), (self.fatal_file, self.fatal())):
                if not content:
                    self.set_aside(file)
                file.unlink(missing_ok=True)
            sync(self.path)
        start = {"event": "started", "attempt": number, "time": utc_now(), "host": socket.gethostname()}
        origin = {"pid": os.getpid(), **self._session(), "submission": current_submission()}
        self._append({**start, **origin, "facts": dict(facts or {})})
        return number

    def set_aside(self, file: Path) -> None:
        """Rename a file that cannot be read to NAME.unreadable, for a person. Only for a process that runs the run."""
        with storage_errors(file), contextlib.suppress(FileNotFoundError):
            file.replace(file.with_name(f"{file.name}.unreadable"))

    def end_attempt(
        self, number: int, exit_code: int, cause: str, last_step: int | None, facts: Facts | None = None
    ) -> None:
        """Record an end: its exit code, the cause for a person, and the last completed step if it is known.

        `facts` of a failure: class, rank, node, checkpoint_step, steps_redone, seconds_lost, nodes, decision, excluded.
        """
        end = {"event": "ended", "attempt": number, "time": utc_now(), "exit_code": exit_code}
        self._append({**end, "cause": cause, "last_step": last_step, "facts": dict(facts or {})})

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first. Lines that cannot be read are ignored and logged."""
        attempts: dict[int, Attempt] = {}
        for line in read_lines(self.attempts_file, AttemptLine):
            number = line.attempt
            if line.event == "started":
                attempts[number] = Attempt(
                    number, line.time, line.facts, line.session, line.submission, line.command_began
                )
            elif number in attempts:
                attempts[number] = dataclasses.replace(
                    attempts[number],
                    ended=line.time,
                    exit_code=line.exit_code,
                    cause=line.cause,
                    last_step=line.last_step,
                    end_facts=line.facts,
                )
        return [attempts[number] for number in sorted(attempts)]

    def mark_finished(self, summary: Facts) -> None:
        """Record that all steps are done. Numbers that are not finite are written as null."""
        _write_json(self.finished_file, {**summary, "time": utc_now()})

    def mark_fatal(self, code: int, message: str, *, kind: str = "", submission: str = "", keep: bool = False) -> None:
        """Record that the run failed for good, with its exit code and the reason. `keep`: an existing record stays."""
        _write_json(self.fatal_file, asdict(Fatal(code, message, utc_now(), kind, submission)), keep=keep)

    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.finished_file.exists()

    def summary(self) -> dict[str, Any] | None:
        """The summary given to `mark_finished`, and the time; None for a run that is not finished.

        Empty if it cannot be read, which is logged.
        """
        known = read_record(self.finished_file, summary_of)
        return known if known is not None or not self.is_finished() else {}

    def fatal(self) -> Fatal | None:
        """Why the run failed for good; None if it did not, or if it cannot be read, which is logged."""
        return read_record(self.fatal_file, functools.partial(record_of, Fatal))

    def has_failed(self) -> bool:
        """Whether the run failed for good, also if the reason cannot be read."""
        return self.fatal_file.exists()

    def _append(self, record: Facts) -> None:
        with storage_errors(self.attempts_file):
            json_lines.append(self.attempts_file, record)

    def _session(self) -> Facts:
        """The newest generation of the lease, which one start of the launcher holds, and when its command began."""
        newest = max(self.lease.glob("*.json"), default=None)
        if newest is None:
            return {"session": ""}
        holder = read_record(newest, lambda content: record_of(Holder, content))
        return {"session": newest.stem, "command_began": "" if holder is None else holder.command_began}


def calibration_file(storage: Path, configuration: str) -> Path:
    """The file with the calibration of a configuration, which is 16 hex digits."""
    return storage / ".calibrations" / f"{configuration}.json"


def remembered_runs(storage: Path) -> Path:
    """The file with a line for each finished run: its work and its times."""
    return storage / ".runs.jsonl"


def current_submission() -> str:
    """The submission that started this process; empty if a person started it."""
    return os.environ.get(SUBMISSION_VARIABLE, "")


def _mkdir_if_absent(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _write_json(path: Path, content: Facts, *, keep: bool = False) -> None:
    with storage_errors(path):
        text = json.dumps(without_non_finite(content), indent=2, allow_nan=False) + "\n"
        replace_whole(path, text.encode(), keep=keep)

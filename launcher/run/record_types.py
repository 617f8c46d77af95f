"""The records in the files of a run directory, how they are read, and the format of their times."""

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from launcher.exit_codes import ExitCode
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.input_files import read_json, record_of
from resnet_dist.telemetry import json_lines

log = logging.getLogger(__name__)

T = TypeVar("T")
Facts = Mapping[str, Any]  # the content of a JSON object


@dataclass(frozen=True)
class Attempt:
    """One start of the run. The fields of its end are None while it runs, and after it was killed with its driver."""

    number: int  # from 1
    started: str  # ISO 8601, UTC
    facts: Facts = field(default_factory=dict)  # as given to begin_attempt
    session: str = ""  # the same for all attempts of one start of the launcher; empty in runs of version 0.1
    submission: str = ""  # the submission that started it; empty if a person did
    command_began: str = ""  # of the session, ISO 8601, UTC; empty in runs of version 0.1
    ended: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    last_step: int | None = None
    end_facts: Facts = field(default_factory=dict)  # as given to end_attempt


@dataclass(frozen=True)
class Fatal:
    """Why the run failed for good."""

    exit_code: int
    message: str
    time: str  # ISO 8601, UTC
    kind: str = ""  # the error class of the rule in `launcher.recovery.faults`
    submission: str = ""  # the submission that failed; empty for a run that a person started

    def __post_init__(self) -> None:
        ExitCode(self.exit_code)  # raises ValueError for any other number


@dataclass(frozen=True)
class _Summary:
    """The known values of FINISHED; a number that is not finite is None."""

    time: str = ""
    duration: str = ""
    finished: bool = True
    step: int = 0
    num_samples: int | None = None
    num_nonfinite: int | None = None
    num_bad: int | None = None
    num_bad_images: int | None = None
    num_known_bad: int | None = None
    num_left_out: int | None = None
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    train_top1: float | None = None
    train_loss: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    stop_at: Mapping[str, float] = field(default_factory=dict)
    target_reached: bool | None = None
    epoch: float | None = None
    time_s: float | None = None
    command_s: float | None = None  # of the command that finished the run: the four below, failed attempts, and its end
    start_s: float | None = None  # until the first step
    training_s: float | None = None
    evaluation_s: float | None = None
    saving_s: float | None = None  # for which checkpoints stopped the training
    waiting_s: float | None = None  # of evaluation_s: at the end, for evaluations beside training
    images_per_s: float | None = None


@dataclass(frozen=True)
class _Facts:
    """The known facts of an attempt, as given to begin_attempt or to end_attempt."""

    place: str = ""
    workers: int = 1
    from_step: int = 0
    num_micro_batches: int | None = None
    excluded: Sequence[str] = ()
    checkpoint_step: int = 0
    steps_redone: int = 0
    seconds_lost: float = 0.0
    decision: str = ""
    node: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class AttemptLine:
    """A line of attempts.jsonl: a start, with session and submission, or an end, with the fields after them."""

    event: Literal["started", "ended"]
    attempt: int
    time: str
    facts: Facts = field(default_factory=dict)
    session: str = ""
    submission: str = ""
    command_began: str = ""
    exit_code: int | None = None
    cause: str | None = None
    last_step: int | None = None

    def __post_init__(self) -> None:
        times = (self.time, self.command_began or self.time)
        has_zone = all(datetime.datetime.fromisoformat(time).tzinfo is not None for time in times)
        is_whole = self.event == "started" or None not in (self.exit_code, self.cause)
        if self.attempt < 1 or not has_zone or not is_whole or record_of(_Facts, self.facts) is None:
            raise ValueError("not a line of attempts.jsonl")


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """The records of a file with one JSON object a line, oldest first; none without a file. Raises StorageError.

    Lines that cannot be read are ignored and logged.
    """
    with storage_errors(path):
        try:
            return json_lines.read(path, functools.partial(record_of, kind))
        except FileNotFoundError:
            return []


def read_record(path: Path, convert: Callable[[object], T | None]) -> T | None:
    """The record in a JSON file; None without one, also if it cannot be read, which is logged. Raises StorageError."""
    record = None
    with storage_errors(path):
        try:
            record = convert(read_json(path))
        except FileNotFoundError:
            return None
        except ValueError:
            pass
    if record is None:
        warn_unreadable(path)
    return record


@functools.cache
def warn_unreadable(path: Path) -> None:
    """Log, once in a process, that a file is ignored."""
    log.warning("%s: ignored, as its content cannot be read", path)


def summary_of(content: object) -> dict[str, Any] | None:
    """`content`, parsed JSON, if it is that of FINISHED; else None."""
    return content if isinstance(content, dict) and record_of(_Summary, content) is not None else None


def utc_now() -> str:
    """The current time in the format of all files of a run: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def as_seconds(time: str) -> float:
    """A time of a run's files in seconds of `time.time`."""
    return datetime.datetime.fromisoformat(time).timestamp()


def as_time(seconds: float) -> str:
    """Seconds of `time.time` in the format of all files of a run."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")

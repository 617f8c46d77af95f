"""How the time of a run's workers was used, and which part of it was useful: the goodput.

    attempt 1 |-- start --|-- steps, evaluations, saves --|  restart  | attempt 2 ...  |  not scheduled  | attempt 3 ...

An attempt counts from its start to its end. The first one of a command counts from the begin of the command, and the
one that finishes the run to the end of the command. The time to the next start counts if the launcher or the scheduler
of the same submission made that start: it is the price of a failure. If a person made it, nobody had scheduled the run
in between, and the time counts as neither useful nor lost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from launcher.report.run_record import RunRecord, number, read
from launcher.run.directory import RunDirectory
from launcher.run.progress import read_beats
from launcher.run.record_types import Attempt, as_seconds, as_time, utc_now
from launcher.run.status import lease_state
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.telemetry.json_lines import Record

Part = Literal["compute", "data_wait", "evaluation", "saving", "repeated", "restart", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
TOO_SHORT = "shorter than a second"  # why the goodput of a run is not known
USEFUL: tuple[Part, ...] = ("compute", "data_wait", "evaluation")
MEANING: Mapping[Part, str] = {
    "compute": "computing steps",
    "data_wait": "waiting for images",
    "evaluation": "evaluation",
    "saving": "waiting for checkpoints",
    "repeated": "steps repeated or lost",
    "restart": "until an automatic restart",
    "other": "start, end and the rest",
}


@dataclass(frozen=True)
class Span:
    """The time of an attempt, in seconds of `time.time`, and the time until the next one."""

    attempt: Attempt
    start: float  # of the command, for its first attempt
    end: float
    gap_s: float = 0.0  # to the next start
    is_automatic: bool = False  # the next start was made by the launcher, or by the scheduler of one submission

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return max(self.end - self.start, 0.0)


@dataclass(frozen=True)
class Goodput:
    """How the time of a run's workers was used, in worker-seconds."""

    all: float  # over all spans, and to the next start if that was automatic
    parts: Mapping[Part, float]  # they add up to `all`
    scheduled_s: float = 0.0  # `all` on a clock
    not_scheduled_s: float = 0.0  # on a clock, between an end and the next start by a person; not part of `all`

    @property
    def useful(self) -> float:
        """Training steps and evaluations that were neither repeated later nor lost."""
        return sum(self.parts[part] for part in USEFUL)

    @property
    def fraction(self) -> float:
        """Useful / all."""
        return self.useful / self.all if self.all else 0.0

    @property
    def is_known(self) -> bool:
        """Whether the run was long enough: starts and ends of attempts are recorded in whole seconds."""
        return self.scheduled_s >= 1


def goodput(run: RunDirectory) -> Goodput:
    """The goodput of the run in a directory. Raises StorageError."""
    record = read(run)
    return goodput_of(record, spans(record))


def goodput_of(run: RunRecord, found: Sequence[Span]) -> Goodput:
    """The goodput of a run with these spans."""
    parts: dict[Part, float] = defaultdict(float)
    scheduled_s = 0.0
    total = 0.0
    for span in found:
        workers, counted_s = workers_of(span.attempt), span.seconds
        if span.is_automatic:
            parts["restart"] += workers * max(span.gap_s, 0.0)
            counted_s = max(span.seconds + span.gap_s, 0.0)
        scheduled_s += counted_s
        total += workers * counted_s
    saved = _saved_step(run) if run.status.state == "failed" else None
    useful = {id(record) for record in run.records if saved is None or record["step"] <= saved}
    for record, attempt, seconds in _timed(run):
        workers = workers_of(attempt)
        if record["kind"] == "event":
            parts["saving"] += workers * seconds
        elif id(record) not in useful:
            parts["repeated"] += workers * seconds
        elif record["kind"] == "eval":
            parts["evaluation"] += workers * seconds
        else:
            wait_s = seconds * data_wait_fraction(record)
            parts["data_wait"] += workers * wait_s
            parts["compute"] += workers * (seconds - wait_s)
    parts["other"] = max(total - sum(parts.values()), 0.0)
    not_scheduled_s = sum(span.gap_s for span in found if not span.is_automatic)
    return Goodput(total, {part: parts[part] for part in PARTS}, scheduled_s, not_scheduled_s)


def spans(run: RunRecord) -> list[Span]:
    """The times of all attempts, oldest first; an attempt that is running ends now."""
    found: list[Span] = []
    for attempt, following in zip(run.attempts, [*run.attempts[1:], None], strict=False):
        before = found[-1] if found else None
        start, end = as_seconds(attempt.started), as_seconds(_end(run.directory, attempt, following))
        if attempt.command_began and (before is None or before.attempt.session != attempt.session):
            began = as_seconds(attempt.command_began)
            start = min(start, began if before is None else max(began, before.end))  # it may have waited for the lease
        if before is not None:
            automatic = _is_automatic(before.attempt, attempt)
            found[-1] = replace(before, gap_s=start - before.end, is_automatic=automatic)
        found.append(Span(attempt, start, end))
    command_s = number(run.summary, "command_s")
    if found and found[-1].attempt.command_began and command_s is not None:
        end = as_seconds(found[-1].attempt.command_began) + command_s
        found[-1] = replace(found[-1], end=max(found[-1].end, end))
    return found


def workers_of(attempt: Attempt | None) -> int:
    """The number of workers of an attempt; 1 if it is not recorded."""
    workers: int = 1 if attempt is None else attempt.facts.get("workers", 1)
    return workers


def data_wait_fraction(record: Record) -> float:
    """The part of a step's time in which it waits for images."""
    step_s, wait_s = number(record, "step_time_s"), number(record, "data_wait_s")
    return min(max(wait_s / step_s, 0.0), 1.0) if step_s and wait_s else 0.0


def steps_covered(records: Sequence[Record]) -> Iterator[tuple[Record, int]]:
    """Each record with the number of steps that it stands for: a train record stands for those since the last one.

    It is 0 for other records. `records` may be those of an interrupted run.
    """
    before = 0
    for record in records:
        covered = 0
        if record.get("event") == "started":
            before = record["step"]
        elif record["kind"] == "train":
            covered = max(record["step"] - before, 0)
            before = record["step"]
        yield record, covered


def shown_ends(run: RunRecord) -> dict[int, dict[str, Any]]:
    """What metrics.jsonl shows of the ends of attempts, by number; those without steps are left out.

    "last_step", and what is lost if the attempt did not save then, as in attempts.jsonl: "checkpoint_step" (the next
    attempt with steps began there, or the newest checkpoint), "steps_redone" and "seconds_lost".
    """
    steps: dict[int, list[tuple[int, float]]] = {}
    for record, attempt, seconds in _timed(run):
        if attempt is not None and record["kind"] in ("train", "eval"):
            steps.setdefault(attempt.number, []).append((record["step"], seconds))
    found, saved = {}, _saved_step(run)
    first_steps = {attempt.number: attempt.facts.get("from_step", 0) for attempt in run.attempts}
    for attempt_number, own in reversed(steps.items()):
        last = max(step for step, _ in own)
        found[attempt_number] = {
            "last_step": last,
            "checkpoint_step": saved,
            "steps_redone": max(last - saved, 0),
            "seconds_lost": sum(seconds for step, seconds in own if step > saved),
        }
        saved = first_steps[attempt_number]
    return found


def _timed(run: RunRecord) -> Iterator[tuple[Record, Attempt | None, float]]:
    """(record, its attempt, seconds) of all records. The time is 0 but for train and eval records and saves."""
    waiting = list(run.attempts)  # that have not begun in metrics.jsonl
    attempt = waiting[0] if waiting else None
    starts = Counter(record["step"] for record in run.written if record.get("event") == "started")
    for record, covered in steps_covered(run.written):
        if record.get("event") == "started":
            fitting = [one for one in waiting if one.facts.get("from_step", 0) == record["step"]]
            if len(fitting) > starts[record["step"]]:  # some have ended before that
                fitting = [one for one in fitting if _has_trained(run, one)] or fitting
            starts[record["step"]] -= 1
            attempt = fitting[0] if fitting else attempt
            waiting = [one for one in waiting if attempt is None or one.number > attempt.number]
        seconds = None
        if record["kind"] == "train":
            step_s = number(record, "step_time_s")
            seconds = None if step_s is None else step_s * covered
        elif record["kind"] == "eval" and not record.get("beside"):  # those beside took no time of the workers
            seconds = number(record, "time_s")
        elif record.get("event") in ("checkpoint", "checkpoint_failed"):
            seconds = number(record.get("detail", {}), "stalled_s")
        yield record, attempt, seconds or 0.0


def _has_trained(run: RunRecord, attempt: Attempt) -> bool:
    """Whether an attempt has done a step, by its recorded end or its heartbeats."""
    beats = read_beats(run.directory, attempt.number)
    return (attempt.last_step or 0) > attempt.facts.get("from_step", 0) or any(beat.phase != "start" for beat in beats)


def _saved_step(run: RunRecord) -> int:
    """The step of the newest checkpoint by the records, since the run last started at step 0; 0 without one."""
    steps: list[int] = [attempt.facts.get("from_step", 0) for attempt in run.attempts[-1:]]
    steps += [record["step"] for record in run.events("checkpoint")]
    return max(steps, default=0)


def _is_automatic(attempt: Attempt, following: Attempt) -> bool:
    """Whether the launcher, or the scheduler of one submission, began the following attempt; else a person did."""
    same_session = attempt.session != "" and attempt.session == following.session
    return same_session or (attempt.submission != "" and attempt.submission == following.submission)


def _end(run: RunDirectory, attempt: Attempt, following: Attempt | None) -> str:
    """The end of an attempt; without a record of it the last sign of life, or now if it may be running."""
    if attempt.ended is not None:
        return attempt.ended
    if following is None and lease_state(run, stale_lease_wait_s=0.0).alive:
        return utc_now()
    with storage_errors(run.path):
        files = [*run.logs(attempt.number).logs(), *run.logs(attempt.number).heartbeats.glob("*")]
        newest = max((path.lstat().st_mtime for path in files), default=None)
    return attempt.started if newest is None else as_time(newest)

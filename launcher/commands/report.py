"""`launcher report RUN|CONFIG --incidents`: what happened to a run, and how much of its time was of use."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launcher.commands import target
from launcher.errors import UsageError
from launcher.run.directory import Attempt, RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run's workers went, in worker-seconds."""

    useful: float  # training steps and evaluations that were not done again later
    all: float  # from each attempt's start to the next one's, or its own end

    @property
    def fraction(self) -> float:
        """Useful / all."""
        return self.useful / self.all if self.all else 0.0


def goodput(run: RunDirectory, now: datetime.datetime | None = None) -> Goodput:
    """How much of the workers' time went into steps that stayed. `now` is for an attempt that is running."""
    attempts = run.attempts()
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    total = 0.0
    ends = [attempt.started for attempt in attempts[1:]]
    for attempt, next_start in zip(attempts, [*ends, None], strict=True):
        end = next_start or attempt.ended or (now or datetime.datetime.now(datetime.UTC)).isoformat()
        total += _workers(attempt) * _seconds(attempt.started, end)
    return Goodput(sum(_workers(_of(attempts, record)) * s for record, s in _useful(records)), total)


def _useful(records: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """(record, seconds) of everything that stayed; a train record speaks for all steps since the one before.

    A record without a time is left out.
    """
    steps = [record for record in records if record["kind"] == "train"]
    starts = {record["step"] for record in records if record.get("event") == "started"}
    before = 0
    for record in steps:
        before = max([before, *(step for step in starts if step < record["step"])])
        if (time_s := record.get("step_time_s")) is not None:
            yield record, time_s * (record["step"] - before)
        before = record["step"]
    for record in records:
        if record["kind"] == "eval" and (time_s := record.get("time_s")) is not None:
            yield record, time_s


def _of(attempts: Sequence[Attempt], record: dict[str, Any]) -> Attempt | None:
    """The attempt that a step that stayed was done in: the last one that began before it."""
    fitting = [attempt for attempt in attempts if attempt.facts.get("from_step", 0) < record["step"]]
    return fitting[-1] if fitting else None


def _workers(attempt: Attempt | None) -> int:
    return 1 if attempt is None else int(attempt.facts.get("workers", 1))


def _seconds(start: str, end: str) -> float:
    return (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()


def incident_lines(run: RunDirectory) -> Iterator[str]:
    """The timeline, and the goodput under it."""
    attempts = run.attempts()
    yield f"run {run.path}: {len(attempts)} attempt{'s' * (len(attempts) != 1)}"
    for before, attempt in pairwise([None, *attempts]):
        assert attempt is not None
        if before is not None and before.ended is not None:
            yield f"  {'':<25}  {_seconds(before.ended, attempt.started):.0f} s until the next attempt began"
        yield from _attempt_lines(run, attempt)
    lost = sum(attempt.end_facts.get("steps_redone", 0) for attempt in attempts)
    seconds = sum(attempt.end_facts.get("seconds_lost", 0.0) for attempt in attempts)
    found = goodput(run)
    done_again = f"{lost} step{'s' * (lost != 1)} done again"
    yield f"lost: {done_again}, {seconds:.0f} s between a checkpoint, or a start, and a failure"
    yield f"goodput: {found.fraction:.1%} = {found.useful:.0f} useful of {found.all:.0f} worker-seconds"


def _attempt_lines(run: RunDirectory, attempt: Attempt) -> Iterator[str]:
    facts, ending = attempt.facts, attempt.end_facts
    workers = _workers(attempt)
    excluded = f", without {', '.join(facts['excluded'])}" if facts.get("excluded") else ""
    yield (
        f"  {attempt.started}  attempt {attempt.number} began after step {facts.get('from_step', 0)} with {workers} "
        f"worker{'s' * (workers != 1)}{excluded}"
    )
    if attempt.ended is None:
        yield f"  {'':<25}  no end is recorded: it runs, or was killed with its driver"
        return
    cause = (attempt.cause or "").splitlines()[0] if attempt.cause else ""
    where = "ended" if attempt.last_step is None else f"ended after step {attempt.last_step}"
    yield f"  {attempt.ended}  {where}, exit code {attempt.exit_code}: {cause}"
    if "steps_redone" in ending:
        yield f"  {'':<25}  {_lost(ending)}; {ending['decision'].splitlines()[0]}"
    if run.incident(attempt.number).is_dir():
        yield f"  {'':<25}  {run.incident(attempt.number) / 'summary.txt'}"


def _lost(ending: Mapping[str, Any]) -> str:
    """What a failure has cost: the steps since the newest checkpoint, and the time since then."""
    steps, saved = ending["steps_redone"], ending["checkpoint_step"]
    done_again = f"{steps} step{'s' * (steps != 1)} to do again"
    if not saved:
        return f"no checkpoint yet: {done_again}, from the beginning, {ending['seconds_lost']:.0f} s after the start"
    if not steps:
        return f"no step is lost: the checkpoint of step {saved} is the newest"
    return f"{done_again} after the checkpoint of step {saved}, {ending['seconds_lost']:.0f} s of work"


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--incidents]"""
    verb = verbs.add_parser("report", help="what happened to a run: attempts, failures, goodput")
    target.add_arguments(verb)
    verb.add_argument("--incidents", action="store_true", help="the timeline of attempts and failures, and the goodput")
    verb.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    found = target.find(given)
    if not found.is_here:
        arguments = ["report", str(found.run.path), *(["--incidents"] if given.incidents else [])]
        if found.read(arguments, live=True) is None:
            raise UsageError(
                f"{found.run.path}: the run directory is not on this machine. Allowed: this verb where the storage is "
                "mounted, or a config with --profile (Kubernetes)"
            )
        return 0
    if not found.run.attempts():
        print(f"run {found.run.path}: no attempt has begun yet")
        return 0
    for line in incident_lines(found.run):
        print(line)
    return 0

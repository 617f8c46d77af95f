"""`launcher report RUN|CONFIG`: the attempts and failures of a run, and its goodput."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launcher.commands import target
from launcher.console import left_out_text, target_text
from launcher.errors import UsageError
from launcher.formatting import count, first_line
from launcher.run.directory import RunDirectory
from launcher.run.record_types import Attempt, Facts, as_seconds, as_time, utc_now
from launcher.run.status import lease_state
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.input_files import printable
from resnet_dist.telemetry.metrics_file import read_metrics


@dataclass(frozen=True)
class Goodput:
    """How the time of a run's workers was used, in worker-seconds."""

    useful: float  # training steps and evaluations that were not repeated later
    all: float  # from each attempt's start to its end, and to the next start if that was automatic

    @property
    def fraction(self) -> float:
        """Useful / all."""
        return self.useful / self.all if self.all else 0.0


def goodput(run: RunDirectory) -> Goodput:
    """The useful fraction of the workers' time; an attempt that is running counts until now.

    Time in which nobody had started the run does not count: from an end to the next start by a person.
    """
    attempts = run.attempts()
    with storage_errors(run.metrics):
        records = read_metrics(run.metrics) if run.metrics.exists() else []
    total = 0.0
    for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
        automatic = following is not None and _is_automatic(attempt, following)
        end = following.started if following is not None and automatic else _end(run, attempt, following)
        total += _workers(attempt) * max(_seconds(attempt.started, end), 0.0)
    return Goodput(sum(_workers(_attempt_of(attempts, record)) * s for record, s in _useful(records)), total)


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


def _useful(records: Sequence[Facts]) -> Iterator[tuple[Facts, float]]:
    """(record, seconds) of all steps and evaluations; a train record covers all steps since the previous one.

    Records without a time are left out.
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


def _attempt_of(attempts: Sequence[Attempt], record: Facts) -> Attempt | None:
    """The attempt of a step: the last one that started before it."""
    fitting = [attempt for attempt in attempts if attempt.facts.get("from_step", 0) < record["step"]]
    return fitting[-1] if fitting else None


def _workers(attempt: Attempt | None) -> int:
    workers: int = 1 if attempt is None else attempt.facts.get("workers", 1)
    return workers


def _seconds(start: str, end: str) -> float:
    return as_seconds(end) - as_seconds(start)


def report_lines(run: RunDirectory) -> Iterator[str]:
    """The timeline of the attempts, and the goodput."""
    attempts = run.attempts()
    yield f"run {printable(str(run.path))}: {count(len(attempts), 'attempt')}"
    for before, attempt in pairwise([None, *attempts]):
        assert attempt is not None
        if before is not None and before.ended is not None:
            counted = "" if _is_automatic(before, attempt) else ", by a person: this time does not count"
            seconds = _seconds(before.ended, attempt.started)
            yield f"  {'':<25}  {seconds:.0f} s until the next attempt started{counted}"
        yield from _attempt_lines(run, attempt)
    lost = sum(attempt.end_facts.get("steps_redone", 0) for attempt in attempts)
    seconds = sum(attempt.end_facts.get("seconds_lost", 0.0) for attempt in attempts)
    found = goodput(run)
    yield f"lost: {count(lost, 'step')} repeated, {seconds:.0f} s between a checkpoint or start and a failure"
    yield f"goodput: {found.fraction:.1%} = {found.useful:.0f} useful of {found.all:.0f} worker-seconds"
    if target_of_run := target_text(run.summary() or {}):
        yield f"target: {target_of_run}"
    if left_out := left_out_text(_left_out(run)):
        yield f"left out: {left_out}"


def _left_out(run: RunDirectory) -> Facts:
    """The broken images that a run has left out so far, as in the summary of a finished one."""
    with storage_errors(run.metrics):
        records = read_metrics(run.metrics) if run.metrics.exists() else []
    found: dict[str, Any] = {}
    for record in records:  # the newest numbers
        found |= {key: record[key] for key in ("num_left_out", "num_bad") if key in record}
    images = {str(record.get("detail", {}).get("path")) for record in records if record.get("event") == "bad_image"}
    listed = (run.summary() or {}).get("num_known_bad")
    return {**found, "num_bad_images": len(images), "num_known_bad": listed}


def _attempt_lines(run: RunDirectory, attempt: Attempt) -> Iterator[str]:
    facts, ending = attempt.facts, attempt.end_facts
    excluded = f", without {', '.join(facts['excluded'])}" if facts.get("excluded") else ""
    workers = f"{count(_workers(attempt), 'worker')}{excluded}"
    yield f"  {attempt.started}  attempt {attempt.number} started after step {facts.get('from_step', 0)} with {workers}"
    if attempt.ended is None:
        yield f"  {'':<25}  no end recorded: it is running, or was killed with its driver"
        return
    cause = first_line(attempt.cause).replace(f"{run.path}/", "")
    where = "ended" if attempt.last_step is None else f"ended after step {attempt.last_step}"
    yield f"  {attempt.ended}  {where}, exit code {attempt.exit_code}: {cause}"
    if "steps_redone" in ending:
        yield f"  {'':<25}  {_lost(ending)}; {first_line(ending.get('decision'))}"
    if run.incident(attempt.number).is_dir():
        yield f"  {'':<25}  {run.incident_summary(attempt.number).relative_to(run.path)}"


def _lost(ending: Facts) -> str:
    """The cost of a failure: the steps and the time since the newest checkpoint."""
    steps, saved, seconds = (ending.get(key, 0) for key in ("steps_redone", "checkpoint_step", "seconds_lost"))
    if not saved:
        return f"no checkpoint yet: {count(steps, 'step')} to repeat, {seconds:.0f} s of work"
    if not steps:
        return f"no step lost: the newest checkpoint is of step {saved}"
    return f"{count(steps, 'step')} to repeat after the checkpoint of step {saved}, {seconds:.0f} s of work"


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...]"""
    verb = verbs.add_parser("report", help="the attempts and failures of a run, and its goodput")
    target.add_arguments(verb)
    verb.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    found = target.find(given)
    if not found.is_here:
        if found.read(["report", str(found.run.path)], live=True) is None:
            raise UsageError(
                f"{found.run.path}: the run directory is not on this machine. Allowed: this command on a machine that "
                "has it, or a config with --profile (Kubernetes)"
            )
    elif not found.run.attempts():
        print(f"run {found.run.path}: no attempt has started yet")
    else:
        print("\n".join(report_lines(found.run)))
    return 0

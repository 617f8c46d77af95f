"""The attempts of a run in order: how each began and ended, what a failure cost, and the time in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.exit_codes import ExitCode
from launcher.formatting import count, first_line
from launcher.report.goodput import Span, shown_ends, workers_of
from launcher.report.run_record import RunRecord
from launcher.run.record_types import Facts
from resnet_dist.input_files import printable, read_whole

_STOPPED = (ExitCode.STOPPED, ExitCode.INTERRUPTED)
_MAX_SUMMARY_BYTES = 20_000  # of an incident's summary that is shown; those that the launcher writes have 2 kB


@dataclass(frozen=True)
class Entry:
    """An attempt, for a person."""

    span: Span
    is_running: bool
    begun: str  # "after step 0 with 2 workers"
    notes: Sequence[str]  # what differs from the attempts before it
    ended: str  # how it ended, with its exit code and cause
    outcome: str  # "finished", "stopped", "failed" or "running"
    last_step: int  # completed by it, or the step that it continued from
    steps_lost: int
    seconds_lost: float
    cost: str  # of a failure, and what was decided; empty without one
    incident: str  # path of the incident's summary, relative to the run directory; empty without one
    incident_text: str  # its content
    gap: str  # the time until the next start; empty for the last attempt


def timeline(run: RunRecord, spans: Sequence[Span]) -> list[Entry]:
    """The attempts of a run, oldest first."""
    ends = shown_ends(run)
    return [_entry(run, span, ends.get(span.attempt.number, {}), is_last=span is spans[-1]) for span in spans]


def _entry(run: RunRecord, span: Span, shown: Facts, *, is_last: bool) -> Entry:
    """`shown`: its end in metrics.jsonl, which counts where attempts.jsonl has none."""
    attempt, facts = span.attempt, span.attempt.facts
    excluded = f", without {', '.join(facts['excluded'])}" if facts.get("excluded") else ""
    is_running = attempt.ended is None and is_last and run.status.state in ("starting", "running", "saving")
    ending = shown if attempt.ended is None and not is_running else attempt.end_facts
    decision = f"; {first_line(ending['decision'])}" if ending.get("decision") else ""
    last_step = shown.get("last_step", facts.get("from_step", 0)) if attempt.last_step is None else attempt.last_step
    incident, text = _incident(run, attempt.number)
    fate = "lost" if is_last and run.status.state == "failed" else "to repeat"
    return Entry(
        span=span,
        is_running=is_running,
        begun=f"after step {facts.get('from_step', 0):,} with {count(workers_of(attempt), 'worker')}{excluded}",
        notes=facts.get("notes", ()),
        ended=_ended(run, span, is_running),
        outcome="running" if is_running else _outcome(attempt.exit_code),
        last_step=last_step,
        steps_lost=ending.get("steps_redone", 0),
        seconds_lost=ending.get("seconds_lost", 0.0),
        cost=f"{_cost(ending, fate)}{decision}" if "steps_redone" in ending else "",
        incident=incident,
        incident_text=text,
        gap="" if is_last else _gap(span),
    )


def _outcome(exit_code: int | None) -> str:
    if exit_code == ExitCode.OK:
        return "finished"
    return "stopped" if exit_code in _STOPPED else "failed"


def _ended(run: RunRecord, span: Span, is_running: bool) -> str:
    attempt = span.attempt
    if attempt.ended is None:
        return "it is running" if is_running else "no end recorded: it was killed with its driver"
    cause = first_line(attempt.cause).replace(f"{run.directory.path}/", "")
    where = "ended" if attempt.last_step is None else f"ended after step {attempt.last_step}"
    return f"{where}, exit code {attempt.exit_code}: {cause}"


def _gap(span: Span) -> str:
    counted = "" if span.is_automatic else ", by a person: this time does not count"
    return f"{span.gap_s:.0f} s until the next start{counted}"


def _cost(ending: Facts, fate: str) -> str:
    """The cost of a failure: the steps and the time since the newest checkpoint, or since the step in memory.

    `fate`: what becomes of the steps.
    """
    steps, saved, seconds = (ending.get(key, 0) for key in ("steps_redone", "checkpoint_step", "seconds_lost"))
    if kept := ending.get("kept_step"):
        lost = f"{count(steps, 'step')} {fate}, {seconds:.0f} s of work" if steps else "no step lost"
        return f"{lost}: a worker has step {kept} in memory"
    if not saved:
        return f"no checkpoint yet: {count(steps, 'step')} {fate}, {seconds:.0f} s of work"
    if not steps:
        return f"no step lost: the newest checkpoint is of step {saved}"
    return f"{count(steps, 'step')} {fate} after the checkpoint of step {saved}, {seconds:.0f} s of work"


def _incident(run: RunRecord, attempt: int) -> tuple[str, str]:
    """The path of an incident's summary, and its text; both empty without an incident."""
    if not run.directory.incident(attempt).is_dir():
        return "", ""
    file = run.directory.incident_summary(attempt)
    try:
        text = printable(read_whole(file, _MAX_SUMMARY_BYTES).decode(errors="replace"))
    except OSError as error:
        text = f"it cannot be read: {error.strerror or error}"
    return str(file.relative_to(run.directory.path)), text


def lines(entries: Sequence[Entry]) -> Iterator[str]:
    """The timeline as text."""
    for entry in entries:
        attempt = entry.span.attempt
        yield f"  {attempt.started}  attempt {attempt.number} started {entry.begun}"
        for note in entry.notes:
            yield f"  {'':<25}  {printable(note)}"
        yield f"  {attempt.ended or '':<25}  {entry.ended}"
        for more in (entry.cost, entry.incident, entry.gap):
            if more:
                yield f"  {'':<25}  {more}"


def described(entry: Entry) -> Mapping[str, object]:
    """An attempt for JSON."""
    attempt = entry.span.attempt
    return {
        "number": attempt.number,
        "started": attempt.started,
        "ended": attempt.ended,
        "seconds": entry.span.seconds,
        "outcome": entry.outcome,
        "exit_code": attempt.exit_code,
        "cause": attempt.cause,
        "workers": workers_of(attempt),
        "from_step": attempt.facts.get("from_step", 0),
        "last_step": entry.last_step,
        "notes": list(entry.notes),
        "cost": entry.cost,
        "incident": entry.incident,
        "gap_s": entry.span.gap_s,
        "gap_counts": entry.span.is_automatic,
    }

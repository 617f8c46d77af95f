"""The sections of a page about one run: what was trained, its time, its attempts, and how to train it again."""

from __future__ import annotations

import json
from collections.abc import Iterator

from launcher.report import facts as run_facts
from launcher.report.bars import attempts_bar, time_bar
from launcher.report.facts import RunFacts
from launcher.report.goodput import MEANING, PARTS, TOO_SHORT, USEFUL
from launcher.report.html_parts import details, facts, listed, table, text
from launcher.report.ranking import duration
from launcher.report.reference_points import SOURCE
from launcher.report.timeline import Entry
from launcher.run.record_types import as_seconds

_BOUND = "The bound is for the mean of five runs; here it is applied to one."
_MAX_TEXT = 2000  # characters of a value of the config or the environment


def badge(state: str) -> str:
    """The state of a run beside its name."""
    return f'<span class="badge is-{text(state)}">{text(state)}</span>'


def run_sections(found: RunFacts, number: int, *, several: bool) -> Iterator[str]:
    """The sections. With `several` runs on the page they are under a heading of their own."""
    level = 3 if several else 2
    name = found.run.name
    if several:
        yield f'<section class="run" id="run-{number}"><h2>{text(name)} {badge(found.run.status.state)}</h2>'
        yield listed(found.warnings, "warnings")
    if several:
        yield from trained(found, level)
    yield from _time(found, number, level)
    yield from _attempts(found, number, level)
    yield from _again(found, level)
    if several:
        yield "</section>"


def trained(found: RunFacts, level: int) -> Iterator[str]:
    """What was trained, and whether it converged as MLPerf's reference runs."""
    yield f"<section><h{level}>What was trained</h{level}>"
    best = run_facts.best_text(found.result)
    yield facts([*found.trained, ("best evaluation", best)])
    if found.reference is not None:
        yield f"<h{level + 1}>MLPerf's reference points</h{level + 1}><p>{text(found.reference.verdict)}.</p>"
        yield f'<p class="note">{_BOUND} {text(_every(found))}'
        yield f"Source: {text(SOURCE)}.</p>"
    yield "</section>"


def _every(found: RunFacts) -> str:
    every = None if found.reference is None else found.reference.every
    return "" if every is None else f"Evaluations were {every:.2f} epochs apart. "


def _time(found: RunFacts, number: int, level: int) -> Iterator[str]:
    goodput = found.goodput
    if not found.entries:
        return
    yield f"<section><h{level}>Where the time went</h{level}>"
    total = sum(goodput.parts.values())
    if total:
        yield time_bar(goodput, f"time-{number}")
        workers = total / goodput.scheduled_s if goodput.scheduled_s else 1.0
        rows = [
            [MEANING[part], duration(goodput.parts[part] / workers), f"{goodput.parts[part] / total:.1%}",
             "useful" if part in USEFUL else "lost" if part in ("repeated", "restart") else "overhead"]
            for part in PARTS if goodput.parts[part]
        ]  # fmt: skip
        rows.append(["scheduled", duration(goodput.scheduled_s), "100 %", ""])
        if goodput.not_scheduled_s >= 1:
            rows.append(["not scheduled", duration(goodput.not_scheduled_s), "", "not counted"])
        head = ["part", "time", "share", ""]
        yield _keyed(table(head, rows, "Where the time of the workers went"))
    share = f"{goodput.fraction:.1%}: {goodput.useful:,.0f} useful of {goodput.all:,.0f} worker-seconds"
    yield (
        f"<p>Goodput {share if goodput.is_known else f'not known: {TOO_SHORT}'}. "
        "The time from an end to a start by a person is not counted: nobody had scheduled the run. The time until the "
        "launcher or the scheduler of the same submission starts it again is lost, with the wait in the queue.</p>"
    )
    if command := run_facts.command_text(found.run):
        yield f"<p>{text(command[0].upper() + command[1:])}.</p>"
    if found.plan is not None:
        yield f"<h{level + 1}>Plan against actual</h{level + 1}>{listed(run_facts.plan_lines(found.plan))}"
    yield "</section>"


def _keyed(shown: str) -> str:
    """The table with the colour of each part of the bar beside its name."""
    for part in PARTS:
        name = f'<th scope="row">{text(MEANING[part])}</th>'
        shown = shown.replace(name, f'<th scope="row"><i class="part-{part}"></i>{text(MEANING[part])}</th>')
    return shown


def _attempts(found: RunFacts, number: int, level: int) -> Iterator[str]:
    if not found.entries:
        yield f"<section><h{level}>Attempts</h{level}><p>No attempt has started yet.</p></section>"
        return
    yield f"<section><h{level}>Attempts and incidents</h{level}>"
    yield attempts_bar(found.entries, f"attempts-{number}")
    yield '<ol class="attempts">'
    for entry in found.entries:
        yield f"<li>{_attempt(entry, number)}</li>"
    yield "</ol></section>"


def _attempt(entry: Entry, number: int) -> str:
    attempt = entry.span.attempt
    ended = f"{text(attempt.ended)}: " if attempt.ended else ""
    since = " since the command" if entry.span.start < as_seconds(attempt.started) else ""
    parts = [
        f'<p><span class="badge is-{entry.outcome}">{entry.outcome}</span> <b>Attempt {attempt.number}</b>, '
        f"{text(duration(entry.span.seconds))}{since}: started {text(attempt.started)} {text(entry.begun)}.</p>",
        listed(entry.notes),
        f"<p>{ended}{text(entry.ended)}.</p>",
    ]
    if entry.cost:
        parts.append(f"<p>{text(entry.cost)}.</p>")
    if entry.incident:
        identity = f"incident-{number}-{attempt.number}"
        parts.append(details(entry.incident, f"<pre>{text(entry.incident_text)}</pre>", identity=identity))
    if entry.gap:
        parts.append(f'<p class="note">{text(entry.gap)}.</p>')
    return "".join(parts)


def _again(found: RunFacts, level: int) -> Iterator[str]:
    run = found.run
    yield f"<section><h{level}>Train it again</h{level}><pre>{text(chr(10).join(found.commands))}</pre>"
    for title, content in (("Config", run.keys), ("Environment", run.environment_keys)):
        if content:
            rows = [
                [key, json.dumps(value, ensure_ascii=False, default=str)[:_MAX_TEXT]] for key, value in content.items()
            ]
            yield details(f"{title}, {len(rows)} keys", table(["key", "value"], rows, f"{title} of {run.name}"))
    yield f'<p class="note">Run directory: {text(run.directory.path)}</p></section>'

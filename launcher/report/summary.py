"""A report as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.console import left_out_text, target_text
from launcher.formatting import count
from launcher.report import facts as run_facts
from launcher.report import timeline
from launcher.report.facts import RunFacts
from launcher.report.goodput import MEANING, PARTS, TOO_SHORT
from launcher.report.ranking import duration
from launcher.report.result import interval_text, percent
from resnet_dist.input_files import printable

_LABEL = 14  # width of the labels
_LEAST_SHARE = 0.005  # of a part of the time that is shown


def lines(found: RunFacts) -> Iterator[str]:
    """The report of a run."""
    run = found.run
    if not run.attempts:
        yield f"run {printable(str(run.directory.path))}: no attempt has started yet"
        return
    yield f"run {printable(str(run.directory.path))}: {run.status.state}, {count(len(run.attempts), 'attempt')}"
    for label, text in _result(found):
        yield f"  {label:<{_LABEL}} {text}"
    for label, text in found.trained:
        yield f"  {label:<{_LABEL}} {printable(text)}"
    yield from timeline.lines(found.entries)
    lost = sum(entry.steps_lost for entry in found.entries)
    seconds = sum(entry.seconds_lost for entry in found.entries)
    yield f"lost: {count(lost, 'step')} between a checkpoint or start and a failure, {seconds:.0f} s of work"
    yield from _time(found)
    if target := target_text(run.summary):
        yield f"target: {target}"
    if left_out := left_out_text(run_facts.left_out_images(run)):
        yield f"left out: {left_out}"
    for text in found.warnings:
        if not text.startswith(("left out:", "target of", "failed:")):  # they are above
            yield f"warning: {printable(text)}"


def _result(found: RunFacts) -> Iterator[tuple[str, str]]:
    """What came out."""
    own, last = found.result, found.result.last
    if last is not None:
        accuracy = last.accuracy
        top1 = "not finite" if accuracy is None else f"{percent(accuracy.top1)} ({interval_text(accuracy)}: 95 %)"
        loss = "n/a" if last.loss is None else f"{last.loss:.4g}"
        yield "top-1", f"{top1}, loss {loss}" + ("" if last.top5 is None else f", top-5 {percent(last.top5)}")
        yield "", own.label
    if best := run_facts.best_text(own):
        yield "best", best
    if found.images_per_s is not None:
        yield "speed", f"{found.images_per_s:,.0f} images/s while training"
    if found.reference is not None:
        yield "MLPerf", found.reference.verdict
    if command := run_facts.command_text(found.run):
        yield "command", command
    for text in run_facts.plan_lines(found.plan) if found.plan is not None else ():
        yield "plan", text


def _time(found: RunFacts) -> Iterator[str]:
    own = found.goodput
    share = f"{own.fraction:.1%} = {own.useful:.0f} useful of {own.all:.0f} worker-seconds"
    yield f"goodput: {share if own.is_known or not found.entries else f'not known: {TOO_SHORT}'}"
    total = sum(own.parts.values())
    if total:
        shares = [(MEANING[part], own.parts[part] / total) for part in PARTS]
        yield "time: " + ", ".join(f"{name} {share:.1%}" for name, share in shares if share > _LEAST_SHARE)
    if own.not_scheduled_s >= 1:
        yield f"not scheduled: {duration(own.not_scheduled_s)} between an end and a start by a person: does not count"

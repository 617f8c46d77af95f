"""The panels of one run, and its summary in three lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from launcher.formatting import count, listed
from launcher.watch.lines import Line, flowed, line
from launcher.watch.snapshot import NO_RECORDS, SPENT, Snapshot, Worker
from launcher.watch.view import duration

_NARROW = 52  # cells below which the table of workers has no space for host and step beside a note
_LETTERS = {"compute": "█", "data wait": "▓", "evaluation": "▒", "saving": "░", "repeated": "x"}


def time(one: Snapshot, width: int) -> list[Line]:
    """Where time goes: over the whole run, and in the newest steps."""
    total = sum(one.spent.values())
    if not total:
        why = NO_RECORDS if one.lacks_records else "no step was measured yet"
        return [line(("where time goes", "bold")), line((f"  {why}", "quiet"))]
    rows = flowed([("where time goes,", "bold"), f"of {duration(total)} in the training loop"], width, 2, gap=" ")
    space = max(width - 30, 4)
    for name in SPENT:
        seconds = one.spent.get(name, 0.0)
        if not seconds and name == "repeated":
            continue
        bar = _LETTERS[name] * round(seconds / total * space)
        style = {"compute": "first", "repeated": "bad"}.get(name, "second")
        rows.append(line(f"  {name:<10} {seconds / total:>6.1%} {duration(seconds):>8}  ", (bar, style)))
    if one.step_time_s:
        wait = (one.data_wait_s or 0.0) / one.step_time_s
        newest = f"newest steps: {duration(one.step_time_s)} each, {wait:.0%} of it waits for data"
        rows += wrapped(newest, width, "  ")
    rows += [line(f"  {row}") for row in textwrap.wrap(one.bottleneck, max(width - 2, 20))]
    return rows


def attempts(one: Snapshot, width: int, height: int) -> list[Line]:
    """The attempts, the marks of the loss curve and the events, the newest of each first."""
    most = max(height // 4, 3)
    rows = [line((count(len(one.attempts), "attempt"), "bold"))]
    rows += [row for text in one.attempts[::-1][:most] for row in wrapped(text, width, "  ")]
    for title, texts in (
        ("marks on the loss", [f"{mark.sign} {mark.text}" for mark in one.marks[::-1][:most]]),
        ("events", one.events[:most]),
    ):
        if texts:
            rows += [line((title, "bold")), *(row for text in texts for row in wrapped(text, width, "  "))]
    return rows


def workers(one: Snapshot, width: int, spare: int) -> list[Line]:
    """All workers, those that need attention first. `spare`: a line below the headings is left for scrolling."""
    if not one.workers:
        return [line(("workers", "bold")), line(("  no worker has written a heartbeat yet", "quiet"))]
    is_wide, host = width >= _NARROW, min(max(len(worker.host) for worker in one.workers), width - 46)

    def cells(rank: object, host_name: str, phase: str, step: str, beat: str) -> str:
        host_cell, step_cell = (f"{host_name[:host]:<{host}} ", f"{step:>9} ") if is_wide else ("", "")
        return f"{rank:>5} {host_cell}{phase[:9]:<9} {step_cell}{beat:>7}  "

    head = cells("rank", "host", "phase", "step", "beat") + "note"
    rows = [line(("workers", "bold"), f": {_counted(one)}"), line((head, "quiet"))]
    for worker in one.workers:
        beat = f"{worker.beat_s:.0f} s" if worker.beat_s < 1e6 else "n/a"
        left = cells(worker.rank, worker.host, worker.phase, f"{worker.step:,}", beat)
        rows.append(line(left, (worker.note, "bad" if worker.needs_attention else "")))
    return rows


def log(one: Snapshot, width: int, height: int, scroll: int) -> list[Line]:
    """The end of the log of one worker."""
    title = f"log of rank {one.rank}"
    if one.ranks and one.rank not in one.ranks:
        title += f": there is none. Ranks with a log: {listed(list(map(str, one.ranks)))}"
    space = max(height - 1, 1)
    rows = [part for text in one.log[-space - scroll :] for part in (wrapped(text, width) or [()])]
    if not rows:
        rows = [line(("  empty", "quiet"))]
    end = max(len(rows) - scroll, min(space, len(rows)))
    return [line((title, "bold")), *rows[max(end - space, 0) : end]]


def scrolled(rows: Sequence[Line], scroll: int, height: int, keep: int) -> list[Line]:
    """`height` of the rows; the first `keep` stay."""
    rest = rows[keep:]
    begin = min(scroll, max(len(rest) - (height - keep), 0))
    return [*rows[:keep], *rest[begin : begin + max(height - keep, 0)]]


def summary(one: Snapshot, name: str = "") -> list[Line]:
    """Where time goes, the workers and the newest mark, a line each."""
    prefix = f"{name} " if name else ""
    total = sum(one.spent.values())
    rows: list[Line] = []
    if total:
        parts = [f"{key} {one.spent.get(key, 0.0) / total:.0%}" for key in SPENT if one.spent.get(key)]
        rows.append(line((f"{prefix}time", "bold"), f"  {', '.join(parts)}"))
    if one.workers:
        rows.append(line((f"{prefix}workers", "bold"), f"  {_counted(one)}"))
    newest = one.marks[-1].text if one.marks else next(iter(one.events), "")
    if newest:
        rows.append(line((f"{prefix}newest", "bold"), f"  {newest}"))
    return rows


def wrapped(text: str, width: int, indent: str = "") -> list[Line]:
    """A text on as many lines as it needs, with more indent from the second on."""
    more = f"{indent}  " if indent else ""
    return [line(row) for row in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=more)]


def _counted(one: Snapshot) -> str:
    """How many workers do what, and those that need attention."""
    phases: dict[str, int] = {}
    for worker in one.workers:
        phases[_doing(worker)] = phases.get(_doing(worker), 0) + 1
    parts = [f"{number} {phase}" for phase, number in sorted(phases.items(), key=lambda item: -item[1])]
    troubled = [worker for worker in one.workers if worker.needs_attention]
    if troubled:
        parts.append(f"rank {troubled[0].rank} {troubled[0].note}" + (" and more" if len(troubled) > 1 else ""))
    return ", ".join(parts)


def _doing(worker: Worker) -> str:
    return worker.note if worker.note.startswith(("ended", "gone")) else f"in {worker.phase}"

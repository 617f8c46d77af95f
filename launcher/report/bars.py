"""Two drawings of a run's time: the parts of it in one bar, and its attempts one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.report.goodput import MEANING, PARTS, Goodput
from launcher.report.html_parts import text
from launcher.report.ranking import duration
from launcher.report.timeline import Entry

_WIDTH = 1000.0
_GAP = 90.0  # width of a time in which nobody had scheduled the run, however long it was
_LEAST = 3.0  # width of an attempt that ended at once
_ROOM = 9.0  # width of a letter, with space


def time_bar(goodput: Goodput, identity: str) -> str:
    """The parts of the workers' time in one bar."""
    total = sum(goodput.parts.values())
    if not total:
        return ""
    shares = [(part, goodput.parts[part] / total) for part in PARTS if goodput.parts[part] > 0]
    said = ", ".join(f"{MEANING[part]} {share:.1%}" for part, share in shares)
    parts, x = [], 0.0
    for part, share in shares:
        width = _WIDTH * share
        parts.append(f'<rect class="part-{part}" x="{x:.1f}" y="0" width="{width:.1f}" height="34"/>')
        if width > 5 * _ROOM:
            parts.append(f'<text class="on-{part}" x="{x + 8:.1f}" y="23">{share:.0%}</text>')
        x += width
    return _drawing(34, identity, "Where the time went", said, parts)


def attempts_bar(entries: Sequence[Entry], identity: str) -> str:
    """The attempts on a clock. Times without a schedule are cut short."""
    if not entries:
        return ""
    scheduled = sum(entry.span.seconds + (entry.span.gap_s if entry.span.is_automatic else 0.0) for entry in entries)
    cut = sum(1 for entry in entries[:-1] if not entry.span.is_automatic)
    scale = max(_WIDTH - cut * _GAP - _LEAST * len(entries), 0.0) / (scheduled or 1.0)
    said = ". ".join(f"Attempt {entry.span.attempt.number}: {entry.ended}" for entry in entries)
    height = 60 if cut else 52 if any(entry.outcome == "failed" for entry in entries) else 36
    return _drawing(height, identity, "Attempts", said, list(_attempts(entries, scale)))


def _attempts(entries: Sequence[Entry], scale: float) -> Iterator[str]:
    x = 0.0
    for entry in entries:
        width = entry.span.seconds * scale + _LEAST
        number = entry.span.attempt.number
        yield f'<rect class="is-{entry.outcome}" x="{x:.1f}" y="4" width="{width:.1f}" height="30"/>'
        label = f"{number}: {entry.outcome}, {duration(entry.span.seconds)}"
        if width > _ROOM * len(label):
            yield f'<text class="on-{entry.outcome}" x="{x + 8:.1f}" y="24">{text(label)}</text>'
        elif width > 3 * _ROOM:
            yield f'<text class="on-{entry.outcome}" x="{x + 6:.1f}" y="24">{number}</text>'
        x += width
        if entry.outcome == "failed":
            yield f'<path class="mark" d="M{x:.1f} 38l-6 12h12z"/>'
        if not entry.gap:
            return
        gap = entry.span.gap_s * scale if entry.span.is_automatic else _GAP
        kind = "restart" if entry.span.is_automatic else "unscheduled"
        yield f'<rect class="is-{kind}" x="{x:.1f}" y="14" width="{max(gap, 0.0):.1f}" height="10"/>'
        if not entry.span.is_automatic:
            middle = f'class="small" x="{x + gap / 2:.1f}" text-anchor="middle"'
            yield f'<text {middle} y="42">{duration(entry.span.gap_s)}</text>'
            yield f'<text {middle} y="56">not scheduled</text>'
        x += max(gap, 0.0)


def _drawing(height: int, identity: str, title: str, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="bars" viewBox="0 0 {_WIDTH:.0f} {height}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{text(title)}</title><desc id="{identity}-d">{text(said)}</desc>'
        f"{''.join(parts)}</svg>"
    )

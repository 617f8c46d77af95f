"""How a plan is written: sections of rows, none wider than 80 columns or the terminal."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from launcher.planning.forecast import Interval

_WIDEST = 80
_NARROWEST = 30
_LABEL = 14  # width of a row's label


def width() -> int:
    """The columns of a line: those of the terminal, at most 80; 80 without a terminal."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))


def shows_blocks() -> bool:
    """Whether standard output can write block characters."""
    try:
        "█│└".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return os.environ.get("TERM") != "dumb"


def heading(title: str) -> Iterator[str]:
    """An empty line, and the title of a section."""
    yield ""
    yield from paragraph(title, indent=0)


def row(label: str, text: str) -> Iterator[str]:
    """A label and its text, which goes on below itself."""
    margin = 2 + _LABEL
    yield from _wrapped(text, f"  {label:<{_LABEL}}", " " * margin)


def paragraph(text: str, indent: int = 2) -> Iterator[str]:
    """Text over the whole width."""
    yield from _wrapped(text, " " * indent, " " * indent)


def columns(rows: Sequence[Sequence[str]], indent: int = 2, needed: Sequence[str] = ()) -> Iterator[str]:
    """A table whose cells go on below themselves.

    Where words are too long for that, columns whose heads are not `needed` are left out, the last one first; where that
    does not help, each row is a paragraph.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in zip(*rows, strict=True)]
    room = width() - indent - 2 * (len(widths) - 1)
    while sum(widths) > room:
        wide = [number for number, size in enumerate(widths) if size > words[number]]
        spare = [number for number, head in enumerate(rows[0]) if needed and head not in needed]
        if not wide and spare:
            yield from columns([[*cells[: spare[-1]], *cells[spare[-1] + 1 :]] for cells in rows], indent, needed)
            return
        if not wide:
            for cells in rows:
                text = "  ".join(cell for cell in cells if cell)
                yield from _wrapped(text, " " * indent, " " * (indent + 4))
            return
        widths[max(wide, key=widths.__getitem__)] -= 1
    for cells in rows:
        parts = [textwrap.wrap(cell, size) for cell, size in zip(cells, widths, strict=True)]
        for line in itertools.zip_longest(*parts, fillvalue=""):
            padded = (text.ljust(size) for text, size in zip(line, widths, strict=True))
            yield (" " * indent + "  ".join(padded)).rstrip()


def _wrapped(text: str, first: str, others: str) -> list[str]:
    # A path or a key is longer than a narrow terminal: it is not broken, so that it can be copied.
    return textwrap.wrap(
        text, width(), initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


def in_time(seconds: float) -> str:
    """A time in the unit in which a person thinks of it.

    >>> in_time(42.3), in_time(150), in_time(5400), in_time(200_000), in_time(2e6)
    ('42 s', '2.5 min', '90 min', '56 h', '23 days')
    """
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < length * limit:
            return f"{_short(seconds / length)} {unit}"
    return f"{_short(seconds / 86400)} days"


def _short(number: float) -> str:
    """Two digits, or all of those before the point.

    >>> _short(2.46), _short(24.6), _short(24_600), _short(0)
    ('2.5', '25', '24,600', '0')
    """
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def spread(value: Interval, shown: Callable[[float], str]) -> str:
    """An interval with `shown` for its numbers.

    >>> spread(Interval(low=3600, median=7200, high=10800), in_time)
    '2 h (80%: 60 min to 3 h)'
    """
    if value.low == value.high:
        return shown(value.median)
    return f"{shown(value.median)} (80%: {shown(value.low)} to {shown(value.high)})"

"""Lines of styled text, from which a screen is made: for textual, and for a terminal that only prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size

Span = tuple[str, str]  # text, and the name of its style in STYLES
Line = tuple[Span, ...]

# Colours of medium lightness, readable on a dark and on a light background. No information is in a colour only.
STYLES = {
    "": "",
    "bold": "bold",
    "quiet": "#808080",
    "first": "#3b82f6",
    "second": "#d97706",
    "good": "bold #16a34a",
    "bad": "bold #dc2626",
    "mark": "#a855f7",
    "tab": "reverse",
}


def line(*parts: str | Span) -> Line:
    """A line of texts, plain or with the name of a style."""
    spans = [(part, "") if isinstance(part, str) else part for part in parts]
    return tuple((text.replace("\n", " ").expandtabs(4), style) for text, style in spans)


def width_of(one: Line) -> int:
    """In cells of the terminal."""
    return sum(cell_len(text) for text, _ in one)


def fitted(one: Line, width: int) -> Line:
    """Cut or padded to `width` cells."""
    spans: list[Span] = []
    for text, style in one:
        left = width - width_of(tuple(spans))
        if left <= 0:
            break
        spans.append((text if cell_len(text) <= left else set_cell_size(text, left), style))
    return (*spans, (" " * (width - width_of(tuple(spans))), ""))


def plain(one: Line) -> str:
    """Without styles, and without spaces at its end."""
    return "".join(text for text, _ in one).rstrip()


def flowed(parts: Iterable[str | Span], width: int, at_most: int, gap: str = "  ") -> list[Line]:
    """Parts next to each other, on up to `at_most` lines. Those that do not fit on the last one are left out."""
    lines: list[Line] = [()]
    for part in parts:
        span = (part, "") if isinstance(part, str) else part
        before = lines[-1]
        space = gap if before else ""
        if before and width_of(before) + len(space) + cell_len(span[0]) > width:
            if len(lines) == at_most:
                continue
            lines.append(line(span))
        else:
            lines[-1] = line(*before, space, span)
    return lines


def beside(left: Sequence[Line], right: Sequence[Line], width: int) -> Iterator[Line]:
    """Two blocks next to each other, each `width` wide, with a space between."""
    for one, other in zip_longest(left, right, fillvalue=()):
        yield (*fitted(one, width), (" ", ""), *fitted(other, width))

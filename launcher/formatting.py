"""Counts, sizes, lists and tables as text, for command line output and messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnet_dist.input_files import printable

_NUM_LISTED = 5


def printable_lines(error: object) -> list[str]:
    """The lines of the text of `error` that are not empty, as `printable` text; at least one.

    >>> printable_lines("\\x1b[36mconnection reset\\x1b[39m\\n\\n  at store 0"), printable_lines("")
    (['connection reset', 'at store 0'], ['no message'])
    """
    return [line for part in printable(str(error)).splitlines() if (line := part.strip())] or ["no message"]


def first_line(text: str | None) -> str:
    """The first line of a text; empty without one."""
    return next(iter((text or "").splitlines()), "")


def count(number: int, noun: str) -> str:
    """`number` with the singular or plural of `noun`.

    >>> count(1, "span"), count(2, "micro-batch"), count(1442, "image")
    ('1 span', '2 micro-batches', '1,442 images')
    """
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def listed(names: Sequence[str]) -> str:
    """Names with commas between them: all of up to five, else the first five and how many more there are.

    >>> listed(["n0", "n1"]), listed([f"n{number}" for number in range(8)])
    ('n0, n1', 'n0, n1, n2, n3, n4 and 3 more')
    """
    shown = ", ".join(names[:_NUM_LISTED])
    return shown if len(names) <= _NUM_LISTED else f"{shown} and {len(names) - _NUM_LISTED} more"


def in_bytes(size: float) -> str:
    """A number of bytes in powers of 1024.

    >>> in_bytes(3 * 2**30), in_bytes(100), in_bytes(64 * 2**20)
    ('3.0 GiB', '100 B', '64.0 MiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.0f} B" if power == 0 else f"{size:.1f} {units[power]}"


def table(rows: Sequence[Sequence[str]], indent: int = 0) -> Iterator[str]:
    """Rows with left-aligned columns, two spaces apart; the last column is not padded.

    >>> list(table([["RUN", "STATE"], ["rn50-8node", "running"]]))
    ['RUN         STATE', 'rn50-8node  running']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield (" " * indent + "  ".join(cells)).rstrip()

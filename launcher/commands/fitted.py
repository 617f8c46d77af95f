"""Lines and tables that fit into a terminal. What goes to a file or to another program stays as it is."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from launcher import streams
from launcher.commands.plan_text import columns
from launcher.formatting import table

_LABEL = re.compile(r" *(?:\S+(?: \S+)* {2,})?")  # the indent of a line, and its label with the spaces behind it


def print_fitted(lines: Iterable[str]) -> None:
    """Print lines; on a terminal, those that are too long go on below their text."""
    width = _width()
    print("\n".join(lines if width is None else fitted(lines, width)))


def fitted(lines: Iterable[str], width: int) -> Iterator[str]:
    """Lines of up to `width` columns; one that is longer goes on below its text, right of its label.

    >>> list(fitted(["  network  resnet20, 10 classes"], 22))
    ['  network  resnet20,', '           10 classes']
    """
    for line in lines:
        if len(line) <= width:
            yield line
            continue
        text, indent = line.lstrip(), len(line) - len(line.lstrip())
        indent = indent if indent <= width // 2 else 4
        label = _LABEL.match(" " * indent + text)
        margin = len(label[0]) if label is not None else indent
        yield from textwrap.wrap(
            " " * indent + text,
            width,
            subsequent_indent=" " * (margin if margin <= width // 2 else indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )


def fitted_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """`formatting.table`; where a terminal is too narrow for it, its cells go on below themselves."""
    lines, width = list(table(rows)), _width()
    yield from lines if width is None or max(map(len, lines)) <= width else columns(rows, indent=0)


def _width() -> int | None:
    """The columns of the terminal; None without one."""
    return shutil.get_terminal_size().columns if streams.is_terminal(sys.stdout) else None

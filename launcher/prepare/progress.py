"""How far a long command has come, at which rate, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from launcher.exit_codes import ExitCode
from resnet_dist.progress_line import progress_line

_TERMINAL_S, _FILE_S = 0.5, 30.0  # between two reports: to a terminal, whose line is written over, or to a file


class Progress:
    """Reports on standard error how many of `total` units are done."""

    def __init__(self, task: str, total: int, unit: str) -> None:
        self._task, self._total, self._unit = task, total, unit
        self._over_line = sys.stderr.isatty()
        self._began = self._reported = time.monotonic()
        self._first: int | None = None  # what was done before
        self._width = 0

    def update(self, done: int) -> None:
        """`done` units are done. The first call says what was done before this command, unless `before` has said it."""
        if self._first is None:
            self.before(done)
        assert self._first is not None
        now = time.monotonic()
        if now - self._reported >= (_TERMINAL_S if self._over_line else _FILE_S):
            self._reported = now
            self._write(progress_line(self._task, self._unit, done, self._total, done - self._first, now - self._began))

    def before(self, done: int) -> None:
        """`done` units were done before this command: they do not count for the rate."""
        self._first, self._began = done, time.monotonic()

    def end(self) -> None:
        """Remove the line from a terminal."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)

    def _write(self, line: str) -> None:
        if self._over_line:
            print(f"\r{line.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)


def print_lines(lines: Iterable[str]) -> ExitCode:
    """Print what a command yields, if the same command continues after Ctrl-C; returns the exit code."""
    try:
        for line in lines:
            print(line, flush=True)
    except KeyboardInterrupt:
        begin = "\n" if sys.stderr.isatty() else ""  # behind the progress and ^C
        print(f"{begin}interrupted: the same command goes on", file=sys.stderr, flush=True)
        return ExitCode.INTERRUPTED
    return ExitCode.OK

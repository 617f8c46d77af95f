"""Standard output and standard error of a process that must not fail because of who reads them."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO

WAIT_S = 1.0  # assumption: a reader that is only slow reads something in this time
CLEAR_LINE = "\r\x1b[2K"  # ECMA-48: to the first column, and erase the line

_noted: list[OSError] = []  # errors of standard output
_opening: list[int] = []  # the descriptor of a line that the next output replaces


def protect() -> None:
    """Replace sys.stdout and sys.stderr by streams whose writes cannot fail, and open descriptors that are closed.

    A closed terminal or pipe, a full disk, a letter that the encoding does not have, or a reader that does not read for
    `WAIT_S` loses text only. The number of lost bytes is written once the stream accepts text again.
    """
    _open_closed()
    sys.stdout, sys.stderr = _protected(sys.stdout, 1), _protected(sys.stderr, 2)


def watch_output() -> None:
    """Open what is closed of the standard streams, and note errors of standard output for `lost_output`."""
    _open_closed()
    encoding, errors = ("utf-8", None) if sys.stdout is None else (sys.stdout.encoding, sys.stdout.errors)
    buffer = io.BufferedWriter(_Noting(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(buffer, encoding, errors, line_buffering=os.isatty(1))
    sys.stderr = os.fdopen(2, "w", closefd=False) if sys.stderr is None else sys.stderr


def _open_closed() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, as by `>&-`: the next file that is opened would get this descriptor
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def write_now(text: str) -> None:
    """Write to standard error without a buffer and without waiting for the reader: for signal handlers."""
    _Lossy(2, wait_s=0.0).write(text.encode(errors="backslashreplace"))


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a line on `stream` can be replaced by another one."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # it is closed
        return False


def show_opening(text: str) -> None:
    """Print a line; on a terminal, until something else is written. Streams must be protected."""
    if is_terminal(sys.stdout):
        sys.stdout.write(text)
        sys.stdout.flush()
        _opening.append(1)
    else:
        print(f"{text} ...", flush=True)


def lost_output() -> OSError | None:
    """Write what Python holds back of standard output; the error of a closed pipe or a full disk, if there was one."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return _noted[-1] if _noted else None


def discard_output() -> None:
    """Lead standard output nowhere, so that the end of the interpreter has no error to report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def protected_stdout() -> TextIO:
    """A stream on standard output's descriptor whose writes cannot fail."""
    return _protected(sys.stdout, 1)


def _protected(stream: TextIO | None, descriptor: int) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    buffer = io.BufferedWriter(_Lossy(descriptor))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)


class _Noting(io.FileIO):
    """Standard output whose errors are noted."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _noted.append(error)
            raise


class _Lossy(io.RawIOBase):
    """A descriptor to write to; what cannot be written is lost."""

    def __init__(self, descriptor: int, wait_s: float = WAIT_S) -> None:
        self._descriptor, self._wait_s = descriptor, wait_s
        self._stalled = False  # whether the reader did not read in time: it is not waited for again until it reads
        self._num_lost = 0

    def write(self, data: Any, /) -> int:
        while _opening:
            _Lossy(_opening.pop()).write(CLEAR_LINE.encode())
        note = f"[{self._num_lost:,} bytes of output could not be written]\n".encode() if self._num_lost else b""
        content = note + bytes(data)
        num_written = self._write(content)
        if num_written >= len(note):
            self._num_lost, num_written = 0, num_written - len(note)
        else:
            num_written = 0
        self._num_lost += len(data) - num_written
        return len(data)

    def _write(self, content: bytes) -> int:
        """Write as much of `content` as possible; returns the number of bytes."""
        done = 0
        try:
            while done < len(content) and self._accepts():
                # A pipe that accepts anything accepts this many bytes without blocking.
                done += os.write(self._descriptor, content[done : done + select.PIPE_BUF])
        except OSError:
            pass
        return done

    def _accepts(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self._stalled = not poll.poll(0 if self._stalled else self._wait_s * 1000)
        return not self._stalled

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

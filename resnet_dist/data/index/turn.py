"""One process at a time makes an index, and the others wait for it: a file says who does.

Only time depends on it. Two processes that make the same index at once, because a lock was lost on a strange file
system, both get a whole one: an index replaces another atomically.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from resnet_dist.input_files import read_whole

BEAT_S = 2.0
STALE_S = 30.0  # without a change: the process is gone, or stopped; its clock does not matter


class Turn:
    """The file `.SPLIT.making` in the folder of an index, with a line that its process rewrites every few seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._token = secrets.token_hex(8)
        self._seen, self._since = b"", time.monotonic()

    @contextlib.contextmanager
    def taken(self) -> Iterator[bool]:
        """Whether this process has the turn during the block; also if the folder cannot be written: nobody waits."""
        try:
            is_ours = self._take()
        except OSError:
            is_ours = True
        if not is_ours:
            yield False
            return
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over,), name="index turn", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):
                if self._read().startswith(self._token.encode()):
                    self._file.unlink()

    def holder(self) -> str:
        """The process that has the turn, such as `process 12 on HOST for 4 s`; the text changes while it works."""
        parts = self._seen.decode("utf-8", "replace").split()
        if len(parts) != 4 or not parts[3].isdigit():
            return "another process"
        return f"process {parts[1]} on {parts[2]} for {int(parts[3]) * BEAT_S:.0f} s"

    def _take(self) -> bool:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self._file.open("xb") as file:
            file.write(self._line(0))
            return True
        content = self._read()
        if content != self._seen:
            self._seen, self._since = content, time.monotonic()
        if time.monotonic() - self._since < STALE_S and not _is_gone(content):
            return False
        self._write(0)
        time.sleep(BEAT_S / 2)  # the last of several that do this has the turn
        return self._read().startswith(self._token.encode())

    def _keep(self, over: threading.Event) -> None:
        number = 0
        while not over.wait(BEAT_S):
            number += 1
            with contextlib.suppress(OSError):
                if not self._read().startswith(self._token.encode()):
                    return  # another process took it: this one was stopped for a while
                self._write(number)

    def _read(self) -> bytes:
        try:
            return read_whole(self._file, 4096)
        except FileNotFoundError:
            return b""

    def _write(self, number: int) -> None:
        temporary = self._file.with_name(f"{self._file.name}-{self._token}")
        temporary.write_bytes(self._line(number))
        temporary.replace(self._file)

    def _line(self, number: int) -> bytes:
        return f"{self._token} {os.getpid()} {socket.gethostname()} {number}".encode()


def _is_gone(line: bytes) -> bool:
    """Whether the process that wrote `line` was on this machine, and has ended."""
    parts = line.split()
    if len(parts) != 4 or parts[2] != socket.gethostname().encode() or not parts[1].isdigit():
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False

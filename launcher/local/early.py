"""The start of a worker process, also of the first one of a command before the command has read its config.

A process of a run imports PyTorch for seconds, and the command's own imports and its config take tenths of one: they
run beside each other. Until the config is read, it is not certain that the run trains in processes of this machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

from launcher import signals, streams

_PLACE = re.compile(r"^place *[:=] *(\w+)", re.MULTILINE)  # in a config, or as an override
_MOST_BYTES = 100_000  # of a file that are searched for it


class Started(NamedTuple):
    """A process of `launcher.local.child`, the link to it, and when it was started, by time.time."""

    process: subprocess.Popen[bytes]
    link: Connection
    began: float


def start(*, piped: bool, environment: Mapping[str, str] | None = None) -> Started:
    """Start a process. `piped`: what it prints goes to its `stdout`; else it prints where this process does.

    Call this in a thread that lives as long as the process shall: the kernel ends the process with that thread.
    """
    began, (link, other) = time.time(), Pipe()
    command = [sys.executable, "-m", "launcher.local.child", str(other.fileno()), str(os.getpid())]
    stdout, stderr = (subprocess.PIPE, subprocess.STDOUT) if piped else (None, None)
    with signals.blocked():  # until the process handles them
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[other.fileno()],
            env=environment,
        )
    other.close()
    return Started(process, link, began)


def start_first(arguments: Sequence[str]) -> Started | None:
    """Start a process for the command with these `arguments`; None if it probably trains elsewhere, or in itself."""
    try:
        return start(piped=streams.is_terminal(sys.stdout)) if _is_likely(arguments) else None
    except OSError:  # a file that cannot be read, or no more processes: the command will say so
        return None


def _is_likely(arguments: Sequence[str]) -> bool:
    """Whether a command with these arguments probably trains in processes of this machine: it has no Ray, or `place`.

    Raises OSError for a file that cannot be read. A pipe or /dev/stdin is not read: the config would be gone.
    """
    files = [Path(text) for text in arguments if "=" not in text and not text.startswith("/dev/")]
    files = [file for file in files if file.is_file()]
    if not files or "RANK" in os.environ:
        return False
    with files[0].open("rb") as file:
        content = file.read(_MOST_BYTES).decode(errors="replace")
    place = (_PLACE.findall("\n".join([content, *arguments])) or ["auto"])[-1]
    return place == "local" or (place == "auto" and importlib.util.find_spec("ray") is None)

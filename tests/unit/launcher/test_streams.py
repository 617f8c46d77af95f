"""Writes to standard output that nobody can or wants to read: the program continues, and exits with its own code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WRITES = """
import sys
from launcher import streams
streams.WAIT_S = 0.0
streams.protect()
for stream in (sys.stdout, sys.stderr):
    for number in range(20_000):
        print("line \\u00d7", number, file=stream)
    stream.write("no end of a line")
with open(sys.argv[1], "w") as file:  # must not become descriptor 1 or 2
    file.write("done")
sys.exit(75)
"""


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def closed_terminal() -> int:
    master, terminal = os.openpty()
    os.close(master)
    return terminal


def stalled_reader() -> int:
    return os.pipe()[1]


def nothing() -> None:
    return None


@pytest.mark.parametrize("stream", [full_disk, closed_pipe, closed_terminal, stalled_reader, nothing])
def test_a_stream_that_cannot_be_written_costs_the_text_only(stream: Callable[[], Any], tmp_path: Path) -> None:
    opened = stream()
    close = {} if opened is not None else {"preexec_fn": lambda: (os.close(1), os.close(2))}
    command = [sys.executable, "-c", WRITES, str(tmp_path / "file")]
    done = subprocess.run(
        command, stdout=opened, stderr=opened, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"}, **close
    )
    assert (done.returncode, (tmp_path / "file").read_text()) == (75, "done")


def run(lines: str, **keywords: Any) -> subprocess.CompletedProcess[bytes]:
    start = "import os, sys; from launcher import streams; streams.protect();"
    return subprocess.run(
        [sys.executable, "-c", start + lines], timeout=60, check=True, capture_output=True, **keywords
    )


def test_a_letter_that_the_encoding_lacks_is_written_as_its_number() -> None:
    done = run(
        "print('2 \\u00d7 3'); sys.stdout.buffer.write(b'raw\\n')", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == b"2 \\xd7 3\nraw\n"


def test_what_could_not_be_written_is_counted_once_there_is_space_again(tmp_path: Path) -> None:
    target = tmp_path / "output"
    # a limit of the size of files fails like a full disk
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY));"
    with target.open("wb") as file:
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from launcher import streams; streams.protect();" + limited + "print('first'); limit(6);"
                "print('second'); print('third'); limit(1000); print('fourth')",
            ],
            stdout=file,
            timeout=60,
            check=True,
        )
    assert target.read_text() == "first\n[13 bytes of output could not be written]\nfourth\n"


def test_a_message_of_a_signal_handler_waits_for_nobody() -> None:
    done = run(
        "_, full = os.pipe(); os.dup2(full, 2); [streams.write_now('x' * 10_000) for _ in range(100)]; print('on')"
    )
    assert done.stdout == b"on\n"


@pytest.mark.parametrize("arguments", [["--help"], ["config", "schema"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_verb_whose_output_cannot_be_written_says_so_in_one_line(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "launcher", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (69, "error: the output cannot be written: No space left on device\n")


def test_a_verb_whose_output_is_closed_or_not_read_ends_quietly() -> None:
    command = f"{sys.executable} -m launcher config schema"
    for redirected in (">&-", "| true"):
        done = subprocess.run(["bash", "-c", f"{command} {redirected}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

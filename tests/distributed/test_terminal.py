"""A run in a terminal: it is never silent, nothing wraps, and Ctrl-C leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable

import pytest

from tests.distributed.fault_runs import FaultRun

COLUMNS = 80


class Terminal:
    """A pseudo-terminal that is read all the time."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.master, 65536):
                self.written += part
        except OSError:
            pass

    def close(self) -> str:
        """What was written; its control sequences are there."""
        os.close(self.slave)
        self._reader.join(120)
        os.close(self.master)
        return self.written.decode()


def test_a_run_in_a_terminal_says_what_it_does_and_answers_ctrl_c(
    fault_run: Callable[..., FaultRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    run, terminal = fault_run(), Terminal()
    run.pace(all=0.2)  # so that it cannot end before the key press
    run.start(output=terminal.slave)
    run.until(lambda: re.search(rb" 3/60.* left", terminal.written))
    os.killpg(run.process.pid, signal.SIGINT)
    run.end(code=130)
    shown = terminal.close()
    lines = [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", line) for line in re.split(r"\r\n|\r|\x1b\[2K", shown)]
    assert lines[0] == "checking the config"
    for stage in ("starting a process and importing PyTorch", "reading the list of images", "first step"):
        assert any(re.fullmatch(f"{stage} +[0-9.]+ s", line) for line in lines), stage
    assert any("/60" in line and line.endswith(" left") for line in lines)
    assert "Ctrl-C: saving at the next step; Ctrl-C again ends without saving" in lines
    # A path has no place to break.
    prose = [line for line in lines if len(line.split()) > 1 and not line.startswith("run ")]
    assert [line for line in prose if len(line) > COLUMNS] == []
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor
    assert "Traceback" not in shown

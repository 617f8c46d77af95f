"""The live line of a terminal, at every width."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launcher import streams
from launcher.console.live import LiveLine, TrainingLine
from launcher.console.progress import Progress

END = "<end of what is read>"
RECORD = {
    "kind": "train",
    "step": 112_500,
    "epoch": 89.99,
    "loss": 12.3456,
    "images_per_s": 28_450.0,
    "time_left_s": 36_000.0,
}


def line(**changes: Any) -> TrainingLine:
    training = TrainingLine(112_590, 0)
    training.add({**RECORD, **changes})
    return training


def rendered(training: TrainingLine, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(training.row(width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
def test_the_line_of_training_is_one_line_at_every_width(width: int) -> None:
    (text,) = rendered(line(), width)
    assert len(text) <= width
    assert "112500/11" in text + "2590" * (width < 13)


def test_the_most_important_numbers_remain_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.console.live.time", SimpleNamespace(monotonic=lambda: 0.0))
    training = line()
    assert training.texts(100) == [
        "112500/112590", "epoch 89.99", "loss 12.3456", "28,450 images/s", "10:00:00 left"
    ]  # fmt: skip
    assert training.texts(76) == ["112500/112590", "loss 12.3456", "28,450 images/s", "10:00:00 left"]
    assert training.texts(40) == ["112500/112590", "10:00:00 left"]
    assert training.texts(20) == ["112500/112590"]


@pytest.mark.parametrize("left", [None, "x", -1.0, 1e300])
def test_a_time_that_is_none_is_not_shown(left: Any) -> None:
    assert not any("left" in text for text in line(time_left_s=left).texts(100))


def test_a_heartbeat_moves_the_line_forward_only() -> None:
    training = line(step=20)
    training.see(25, "evaluating")
    assert {"    25/112590", "evaluating"} <= set(training.texts(100))
    training.see(10, "saving")
    assert {"    25/112590", "evaluating"} <= set(training.texts(100))
    training.add({**RECORD, "step": 30})
    assert "evaluating" not in training.texts(100)


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """Standard output is a terminal of 40 columns; what is written there is read from the descriptor."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "40")
        patch.setattr(streams, "protected_stdout", lambda: stream)
        patch.setattr(sys, "stdout", stream)
        yield master
    os.close(master)


def written(master: int) -> str:
    """What was written until now: the kernel may hand it over later than it was written."""
    stream = streams.protected_stdout()
    stream.write(END)
    stream.flush()
    text = b""
    while END.encode() not in text:
        text += os.read(master, 65536)
    return text.decode().replace(END, "")


def test_lines_appear_above_the_live_line_and_the_cursor_is_there() -> None:
    with terminal() as master:
        progress = Progress()
        assert progress.is_live
        progress.stage("starting Ray on this machine")
        progress.stage("a stage whose name is much longer than a terminal is wide")
        progress.print("a warning that is longer than the terminal is wide, with [brackets]")
        progress.record({"kind": "event", "event": "started", "step": 0, "detail": {"total_steps": 50}})
        progress.record({**RECORD, "step": 20})
        progress.close()
        shown = written(master)
    lines = [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", part) for part in re.split(r"\r\n|\x1b\[2K", shown)]
    assert any(re.fullmatch(r"starting Ray on this machine +[0-9.]+ s", line) for line in lines)
    assert "a warning that is longer than the" in lines
    assert any(line.endswith("with [brackets]") for line in lines)
    assert any("20/50" in line and line.endswith("left") for line in lines)
    assert max(map(len, lines)) <= 40
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_hidden_line_is_shown_no_longer() -> None:
    with terminal() as master:
        progress = Progress()
        progress.stage("training")
        assert "training" in written(master)
        progress.hide()
        written(master)  # of a refresh that had begun
        progress.print("ended")
        progress.close()
        assert "training" not in written(master)


@pytest.mark.parametrize("kind", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_replace_a_line_gets_none(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal():
        assert Progress().is_live
        monkeypatch.setenv("TERM", kind)
        assert not Progress().is_live


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, colors in (("COLORTERM", True), ("NO_COLOR", False)):
        monkeypatch.setenv(variable, "1")
        with terminal() as master:
            live = LiveLine()
            live.training = TrainingLine(10, 5)
            live.print("text")
            live.close()
            assert bool(re.search(r"\x1b\[[0-9]+m", written(master))) is colors

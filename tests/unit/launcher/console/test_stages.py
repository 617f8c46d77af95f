"""The stages of a start without a terminal, and the times of a command."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from launcher.console import progress as console_progress
from launcher.console.progress import Progress, command_began
from launcher.console.summary import summary_lines, time_text
from launcher.run.directory import RunDirectory

LONG_S = console_progress.LONG_S


@pytest.fixture(autouse=True)
def _no_stage_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However loaded the machine is."""
    monkeypatch.setattr(console_progress, "LONG_S", 3600.0)


def test_each_stage_has_a_line_with_its_time_when_it_ends() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.stage("starting Ray on this machine")
    for begins in ("reading the list of images", "first step", None):
        detail = {"begins": begins}
        progress.record({"kind": "event", "step": 0, "event": "stage", "detail": detail})
    texts = ["starting Ray on this machine", "reading the list of images", "first step"]
    assert [re.sub(r" +[0-9.]+ s$", "", line) for line in stream.getvalue().splitlines()] == texts


def test_nothing_is_silent_for_a_second() -> None:
    assert LONG_S < 1.0


def test_a_begin_that_was_told_is_not_told_again() -> None:
    progress = Progress(io.StringIO())
    progress.stage("checking the config", began=progress.began)
    assert progress._long is None


def test_a_stage_that_takes_long_is_told_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_progress, "LONG_S", 0.0)
    stream = io.StringIO()
    progress = Progress(stream)
    progress.stage("starting Ray")
    timer = progress._long
    assert timer is not None
    timer.join()
    assert stream.getvalue() == "starting Ray ...\n"


def test_a_stage_that_is_given_up_leaves_no_line() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.stage("checking the config")
    progress.close()
    assert stream.getvalue() == ""


def test_what_is_trained_is_said_at_the_first_start_only() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.describe = lambda detail, step: [f"{detail['total_steps']} steps, {step} done"]
    for step in (3, 7):
        progress.record({"kind": "event", "step": step, "event": "started", "detail": {"total_steps": 9}})
    assert stream.getvalue() == "9 steps, 3 done\n"
    assert progress.start_s is not None


def test_the_times_of_a_command_add_up_and_what_is_left_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    run.create()
    times = {"command_s": 248.4, "start_s": 12.4, "training_s": 215.4, "evaluation_s": 16.4, "saving_s": 1.4}
    assert time_text(run, times) == "4:08: start 0:12, train 3:36, evaluate 0:16, save 0:02, end 0:02"
    run.begin_attempt({"place": "local"})
    run.begin_attempt({"place": "local"})  # of the same command
    assert time_text(run, times).endswith(", failed attempts, end 0:02")
    assert time_text(run, {}) == ""
    summary = {**times, "step": 3, "images_per_s": 9.0, "top1": 0.5, "num_samples": 4, "duration": "3 steps"}
    assert summary_lines(run, summary)[2].startswith("  time         4:08: ")


def test_waiting_for_evaluations_beside_training_is_no_evaluating(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    run.create()
    run.begin_attempt({"place": "local"})
    times = {"command_s": 20.4, "start_s": 2.4, "training_s": 10.4, "evaluation_s": 5.4, "saving_s": 1.4}
    assert "evaluate 0:01, save 0:01, wait for evaluations 0:05, end" in time_text(run, {**times, "waiting_s": 4.2})
    assert "wait" not in time_text(run, {**times, "waiting_s": 0.001})


def test_a_command_began_when_its_process_did() -> None:
    import time

    assert time.monotonic() - command_began() >= 0.0

"""Where the time of a run went, and which part of it counts."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.report import report_lines
from launcher.report.facts import described, facts
from launcher.report.goodput import PARTS, goodput, goodput_of, spans
from launcher.report.page import page
from launcher.report.ranking import ranked
from launcher.report.run_record import read, read_all
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]

STOPPED = {"exit_code": 75, "cause": "stopped on request"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "small")
    directory.create()
    return directory


def write_attempts(run: RunDirectory, *lines: tuple[int, str, str, str, dict[str, Any]]) -> None:
    """Lines of attempts.jsonl: (attempt, event, time on one day, session or submission, more)."""
    records = [
        {"attempt": number, "event": event, "time": f"2026-01-01T{clock}+00:00"}
        | ({"session": origin, "submission": origin if origin.startswith("job") else "", "facts": {"workers": 2}}
           if event == "started" else {"exit_code": 76, "cause": "why", "last_step": 0}) | more
        for number, event, clock, origin, more in lines
    ]  # fmt: skip
    run.attempts_file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_time_in_which_nobody_had_started_the_run_does_not_count(run: RunDirectory) -> None:
    write_attempts(
        run,
        (1, "started", "10:00:00", "00000001", {}),
        (1, "ended", "10:00:10", "", {}),
        (2, "started", "10:00:14", "00000001", {}),  # restarted by the same launcher after 4 s
        (2, "ended", "10:00:20", "", {}),
        (3, "started", "16:00:00", "00000002", {}),  # by a person, after hours
        (3, "ended", "16:00:30", "", {}),
    )
    assert goodput(run).all == 2 * (14 + 6 + 30)
    text = "\n".join(report_lines([facts(record) for record in read_all([run])]))
    assert "  4 s until the next start\n" in text
    assert "  21580 s until the next start, by a person: this time does not count\n" in text


def test_the_time_in_which_a_scheduler_requeues_one_submission_counts(run: RunDirectory) -> None:
    write_attempts(run, (1, "started", "10:00:00", "job-1", {}), (1, "ended", "10:00:10", "", {}))
    lines = run.attempts_file.read_text()
    write_attempts(run, (2, "started", "10:05:00", "job-1", {}), (2, "ended", "10:06:00", "", {}))
    run.attempts_file.write_text(lines + run.attempts_file.read_text().replace('"session": "job-1"', '"session": "2"'))
    assert goodput(run).all == 2 * (300 + 60)


def test_an_attempt_that_was_killed_with_its_driver_counts_until_its_last_sign_of_life(run: RunDirectory) -> None:
    write_attempts(run, (1, "started", "10:00:00", "00000001", {}), (2, "started", "16:00:00", "00000002", {}))
    run.logs(1).heartbeats.mkdir(parents=True)
    began = datetime.datetime.fromisoformat("2026-01-01T10:00:00+00:00").timestamp()
    run.logs(1).log(0).touch()
    run.logs(1).heartbeat(0).touch()
    os.utime(run.logs(1).log(0), (began + 5, began + 5))
    os.utime(run.logs(1).heartbeat(0), (began + 40, began + 40))
    assert goodput(run).all == 2 * 40  # the second one left no sign


def test_the_parts_add_up_and_tell_useful_time_from_repeated(run: RunDirectory) -> None:
    write_attempts(
        run,
        (1, "started", "10:00:00", "00000001", {}),
        (1, "ended", "10:00:20", "", {}),
        (2, "started", "10:00:25", "00000001", {}),
        (2, "ended", "10:00:45", "", STOPPED),
    )
    steps = [{"kind": "train", "step": step, "step_time_s": 1.0, "data_wait_s": 0.25} for step in range(1, 11)]
    saved = {"kind": "event", "event": "checkpoint", "step": 8, "detail": {"stalled_s": 2.0}}
    evaluated = {"kind": "eval", "step": 10, "top1": 0.5, "num_samples": 8, "time_s": 3.0}
    records = [
        {"kind": "event", "event": "started", "step": 0, "detail": {}},
        *steps, saved, evaluated,
        {"kind": "event", "event": "started", "step": 8, "detail": {}},
        *steps[8:], evaluated,
    ]  # fmt: skip
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    record = read(run)
    found = goodput_of(record, spans(record))
    workers = 2
    expected = {"compute": 7.5, "data_wait": 2.5, "evaluation": 3.0, "saving": 2.0, "repeated": 5.0, "restart": 5.0}
    assert {part: found.parts[part] / workers for part in expected} == expected
    assert sum(found.parts.values()) == found.all == workers * 45
    assert (found.scheduled_s, found.not_scheduled_s) == (45, 0)
    assert found.useful == workers * 13


def test_an_evaluation_beside_training_takes_no_time_of_the_workers(run: RunDirectory) -> None:
    write_attempts(run, (1, "started", "10:00:00", "1", {}), (1, "ended", "10:01:00", "", {}))
    records = [{"kind": "eval", "step": 1, "top1": 0.5, "num_samples": 8, "time_s": 30.0, "beside": True}]
    run.metrics.write_text(json.dumps(records[0]) + "\n")
    assert goodput(run).useful == 0


def test_a_record_stands_for_the_steps_since_the_one_before_it(run: RunDirectory) -> None:
    write_attempts(run, (1, "started", "10:00:00", "1", {}), (1, "ended", "10:01:00", "", STOPPED))
    records = [{"kind": "train", "step": step, "step_time_s": 2.0} for step in (10, 20)]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert goodput(run).parts["compute"] == 2 * 40


def test_the_first_attempt_of_a_command_counts_from_the_begin_of_the_command(run: RunDirectory) -> None:
    def began(clock: str) -> dict[str, str]:
        return {"command_began": f"2026-01-01T{clock}+00:00"}

    write_attempts(
        run,
        (1, "started", "10:00:40", "00000001", began("10:00:00")),
        (1, "ended", "10:01:00", "", {}),
        (2, "started", "10:01:10", "00000001", began("10:00:00")),  # by the same command
        (2, "ended", "10:01:30", "", STOPPED),
        (3, "started", "10:02:00", "00000002", began("10:01:20")),  # it waited for the one before
        (3, "ended", "10:02:30", "", {"exit_code": 0}),
    )
    run.mark_finished({"step": 4, "duration": "4 steps", "command_s": 75.0})  # to 10:02:35, with its end
    record = read(run)
    assert [span.seconds for span in spans(record)] == [60, 20, 65]
    assert [span.gap_s for span in spans(record)] == [10, 0, 0]
    found = goodput(run)
    assert (found.scheduled_s, found.not_scheduled_s) == (155, 0)
    assert found.parts["restart"] == 2 * 10


@pytest.mark.parametrize("exit_code", [1, 75])
def test_steps_after_the_last_checkpoint_of_a_failed_run_are_lost(run: RunDirectory, exit_code: int) -> None:
    write_attempts(
        run, (1, "started", "10:00:00", "1", {}), (1, "ended", "10:01:00", "", {**STOPPED, "exit_code": exit_code})
    )
    steps = [{"kind": "train", "step": step, "step_time_s": 1.0} for step in range(1, 6)]
    saved = {"kind": "event", "event": "checkpoint", "step": 3, "detail": {}}
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in [*steps, saved]))
    found = goodput(run)
    assert (found.useful, found.parts["repeated"]) == ((2 * 3, 2 * 2) if exit_code == 1 else (2 * 5, 0))


def test_the_goodput_of_a_run_that_is_shorter_than_its_clock_is_not_known(run: RunDirectory) -> None:
    write_attempts(run, (1, "started", "10:00:00", "1", {}), (1, "ended", "10:00:00", "", STOPPED))
    run.metrics.write_text(json.dumps({"kind": "train", "step": 1, "step_time_s": 0.3}) + "\n")
    found = [facts(record) for record in read_all([run])]
    assert "goodput: not known: shorter than a second" in "\n".join(report_lines(found))
    assert described(found[0])["goodput"]["fraction"] is None
    shown = page(found, ranked([found[0].run]), "launcher report", "now")
    assert "<p>Goodput not known: shorter than a second. " in shown
    assert "<dt>Goodput</dt><dd><b>not known</b><span>shorter than a second</span>" in shown
    assert "0 useful" not in shown


def test_a_run_without_metrics_has_no_useful_time(write_run: WriteRun) -> None:
    run = write_run(records=[])
    run.metrics.unlink()
    found = goodput(run)
    assert (found.useful, found.fraction) == (0, 0)
    assert set(found.parts) == set(PARTS)

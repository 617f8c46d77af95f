"""The attempts of a run in text, and what else a report says below them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import records_of

from launcher import cli
from launcher.commands import report as verb
from launcher.report.facts import facts as facts_of
from launcher.report.goodput import spans
from launcher.report.run_record import read, read_all
from launcher.report.timeline import timeline
from launcher.run import lease
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]


def report_lines(run: RunDirectory) -> list[str]:
    return list(verb.report_lines([facts_of(record) for record in read_all([run])]))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "small")
    directory.create()
    return directory


def test_a_report_counts_the_broken_images_of_a_run_that_goes_on(run: RunDirectory) -> None:
    run.begin_attempt({"workers": 1})
    assert "left out" not in "\n".join(report_lines(run))
    records: list[dict[str, Any]] = [
        {"kind": "event", "event": "bad_image", "step": 2, "detail": {"path": "a.jpg", "problem": "is gone"}},
        {"kind": "train", "step": 2, "num_left_out": 1},
        {"kind": "event", "event": "bad_image", "step": 3, "detail": {"path": "b.jpg", "problem": "is gone"}},
        {"kind": "train", "step": 3, "num_left_out": 4},
        {"kind": "eval", "step": 3, "num_bad": 2},
    ]
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    assert (
        "left out: 2 broken images found (events bad_image in metrics.jsonl); 4 samples of the training steps, "
        "2 val images"
    ) in list(report_lines(run))


def test_the_command_prints_the_timeline(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run.path)]) == 64
    run.begin_attempt({"workers": 1})
    assert cli.main(["report", str(run.path)]) == 0
    assert "attempt 1 started" in capsys.readouterr().out


def test_a_failure_before_any_checkpoint_is_told_as_such(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    facts = {"steps_redone": 3, "checkpoint_step": 0, "seconds_lost": 12.3, "decision": "failure 1 of 3"}
    run.end_attempt(number, 76, "WorkerLost: gone", None, facts)
    text = "\n".join(report_lines(run))
    assert "no checkpoint yet: 3 steps lost, 12 s of work; failure 1 of 3" in text
    assert "lost: 3 steps between a checkpoint or start and a failure, 12 s of work" in text
    run.begin_attempt({"workers": 1})
    assert "no checkpoint yet: 3 steps to repeat, 12 s of work; failure 1 of 3" in "\n".join(report_lines(run))
    assert "step None" not in text
    assert "step 0:" not in text


def test_an_attempt_names_what_differs_from_those_before_it(run: RunDirectory) -> None:
    run.begin_attempt({"workers": 1, "notes": ["changed: duration was '9 epochs', is '2 epochs'"]})
    assert "  changed: duration was '9 epochs', is '2 epochs'\n" in "\n".join(report_lines(run))
    assert facts_of(read(run)).commands[-2].startswith("# the config changed during the run")


def test_a_failure_right_after_a_checkpoint_loses_no_step(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    facts = {"steps_redone": 0, "checkpoint_step": 20, "seconds_lost": 0.04, "decision": "failure 1 of 3"}
    run.end_attempt(number, 76, "WorkerLost: gone", 20, facts)
    assert "no step lost: the newest checkpoint is of step 20" in "\n".join(report_lines(run))


@pytest.mark.parametrize(
    ("redone", "said"),
    [(0, "no step lost: a worker has step 24 in memory"), (1, "1 step lost, 2 s of work: a worker has step 24")],
)
def test_a_report_says_what_a_worker_had_in_memory(run: RunDirectory, redone: int, said: str) -> None:
    facts = {"steps_redone": redone, "checkpoint_step": 20, "kept_step": 24, "seconds_lost": 2.0, "decision": "again"}
    run.end_attempt(run.begin_attempt({"workers": 2}), 76, "WorkerLost: killed", 24 + redone, facts)
    assert said in "\n".join(report_lines(run))


def test_an_incident_is_shown_with_its_text(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    run.incident(number).mkdir(parents=True)
    run.incident_summary(number).write_text("attempt 1 failed: what to do\n\x1b[2J")
    run.end_attempt(number, 76, "WorkerLost: gone", 3)
    [entry] = timeline(read(run), spans(read(run)))
    assert (entry.outcome, entry.incident) == ("failed", "incidents/attempt-1/summary.txt")
    assert entry.incident_text == "attempt 1 failed: what to do\n"


def test_an_incident_whose_summary_cannot_be_read_says_so(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    run.incident_summary(number).mkdir(parents=True)
    run.end_attempt(number, 76, "WorkerLost: gone", 3)
    [entry] = timeline(read(run), spans(read(run)))
    assert entry.incident_text.startswith("it cannot be read: ")


def test_an_attempt_that_runs_is_told_from_one_that_was_killed_with_its_driver(run: RunDirectory) -> None:
    run.begin_attempt({"workers": 1})
    with lease.acquire(run.lease):
        [running] = timeline(read(run), spans(read(run)))
    [killed] = timeline(read(run), spans(read(run)))
    assert (running.outcome, running.ended) == ("running", "it is running")
    assert (killed.outcome, killed.ended) == ("failed", "no end recorded: it was killed with its driver")


@pytest.mark.parametrize(
    ("checkpoint", "cost", "lost"),
    [
        (0, "no checkpoint yet: 41 steps lost, 20 s of work", (41, 20)),
        (30, "11 steps lost after the checkpoint of step 30, 6 s of work", (11, 6)),
    ],
)
def test_what_a_killed_driver_loses_is_counted_from_the_records(
    write_run: WriteRun, checkpoint: int, cost: str, lost: tuple[int, int]
) -> None:
    records = records_of(41, every=100)
    if checkpoint:
        records.append({"kind": "event", "event": "checkpoint", "step": checkpoint})
    run = write_run(records=records, finish=False)
    text = "\n".join(report_lines(run))
    assert f"  {cost}\n" in text
    assert f"lost: {lost[0]} steps between a checkpoint or start and a failure, {lost[1]} s of work" in text
    [entry] = timeline(read(run), spans(read(run)))
    assert (entry.last_step, entry.steps_lost) == (41, 41 - checkpoint)


def test_a_killed_driver_loses_the_steps_after_the_one_from_which_the_next_attempt_resumes(write_run: WriteRun) -> None:
    first, again = records_of(41, every=100), records_of(50, every=100)[11:]
    started = {"kind": "event", "event": "started", "step": 10, "detail": {}}
    run = write_run(records=[*first, started, *again], finish=False)
    run.end_attempt(run.begin_attempt({"workers": 2, "from_step": 10}), 0, "finished", 50)
    killed, last = timeline(read(run), spans(read(run)))
    assert (killed.last_step, killed.steps_lost, killed.seconds_lost) == (41, 31, 15.5)
    assert killed.cost == "31 steps to repeat after the checkpoint of step 10, 16 s of work"
    assert (last.last_step, last.steps_lost, last.cost) == (50, 0, "")


def test_steps_are_not_those_of_an_attempt_that_was_killed_while_it_started(write_run: WriteRun) -> None:
    run = write_run(finish=False)
    run.end_attempt(run.begin_attempt({"workers": 2, "from_step": 0}), 75, "stopped on request", 20)
    killed, stopped = timeline(read(run), spans(read(run)))
    assert (killed.last_step, killed.steps_lost, killed.cost) == (0, 0, "")
    assert stopped.last_step == 20


def test_an_attempt_that_runs_has_lost_nothing(write_run: WriteRun) -> None:
    run = write_run(finish=False)
    with lease.acquire(run.lease):
        [running] = timeline(read(run), spans(read(run)))
    assert (running.last_step, running.steps_lost, running.cost) == (20, 0, "")

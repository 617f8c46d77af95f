"""Earlier runs as evidence, and the times of runs with several attempts."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config.schema import Resources, RunConfig
from launcher.planning.actual import actual
from launcher.planning.history import device_here, device_name, earlier_run, earlier_runs, remember
from launcher.run.directory import RunDirectory, remembered_runs
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe

TIMES = {"start_s": 5.0, "training_s": 40.0, "evaluation_s": 4.0, "saving_s": 1.0}


def test_a_finished_run_is_read_with_its_work_and_times(config: RunConfig, trained: Any) -> None:
    trained(config, "first", **TIMES)
    (found,) = earlier_runs(Path(config.storage))
    assert (found.name, found.work.steps, found.work.evaluated_images) == ("first", 20, 50)
    assert (found.times.wall_s, found.times.training_s, found.times.start_s) == (50, 40, 5)
    assert (found.images.num_samples, found.images.num_val) == (100, 25)
    assert found.device == device_here(config) == "a CPU, 2 cores"


def test_what_belongs_to_no_part_is_in_the_start(config: RunConfig, trained: Any) -> None:
    run = trained(config, "first", **TIMES)
    summary = json.loads(run.finished_file.read_text())
    run.finished_file.write_text(json.dumps({**summary, "command_s": 53.0}))
    found = actual(run)
    assert found is not None
    assert found.parts == {"start_s": 8, "training_s": 40, "evaluation_s": 4, "saving_s": 1}


def test_unreadable_runs_are_left_out(config: RunConfig, trained: Any) -> None:
    good = trained(config, "good", **TIMES)
    for name, spoil in {
        "torn": lambda run: run.config.write_text("schema: ["),
        "empty": lambda run: run.finished_file.write_text(""),
        "started": lambda run: run.finished_file.unlink(),
        "no-attempts": lambda run: run.attempts_file.unlink(),
        "negative": lambda run: run.finished_file.write_text('{"step": -3, "command_s": -1.0}'),
    }.items():
        spoil(trained(config, name, **TIMES))
    (good.storage / "file").write_text("no run")
    (good.storage / "folder").mkdir()
    assert [run.name for run in earlier_runs(good.storage)] == ["good"]
    assert list(earlier_runs(good.storage / "none")) == []


def test_remembered_runs_need_no_time_and_are_equal(config: RunConfig, trained: Any) -> None:
    run, storage = trained(config, "first", **TIMES), Path(config.storage)
    trained(config, "second", **TIMES)
    read = {one.name: one for one in earlier_runs(storage)}
    remember(run)
    assert list(earlier_runs(storage, seconds=-1)) == [read["first"]]
    with remembered_runs(storage).open("a") as file:
        file.write('{"name": "second", "finished_ns": 1}\n[]\n{"torn')
    assert {one.name: one for one in earlier_runs(storage)} == read


def test_a_run_that_was_trained_longer_or_deleted_is_not_the_remembered_one(config: RunConfig, trained: Any) -> None:
    run = trained(config, "first", **TIMES)
    remember(run)
    longer = replace(config, duration=Duration(Fraction(4), "epochs"))
    trained(longer, "first", **{**TIMES, "training_s": 90.0})
    assert [one.work.steps for one in earlier_runs(run.storage)] == [40]
    run.finished_file.unlink()
    assert list(earlier_runs(run.storage)) == []


def test_a_storage_that_cannot_be_written_does_not_fail_the_run(
    config: RunConfig, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(config, "first", **TIMES)
    remembered_runs(run.storage).mkdir()
    remember(run)
    assert "is not remembered" in caplog.text


def test_reading_ends_with_its_time(config: RunConfig, trained: Any) -> None:
    trained(config, "first", **TIMES)
    assert list(earlier_runs(Path(config.storage), seconds=-1)) == []


def write_attempts(run: RunDirectory, *attempts: tuple[str, str, str]) -> None:
    """(start, end, session) of each."""
    lines = []
    for number, (start, end, session) in enumerate(attempts, start=1):
        head = {"attempt": number, "session": session}
        lines.append({"event": "started", **head, "time": f"2026-01-01T{start}+00:00", "facts": {"workers": 1}})
        end_line = {"exit_code": 75, "cause": "", "last_step": 1}
        lines.append({"event": "ended", **head, "time": f"2026-01-01T{end}+00:00", **end_line})
    run.attempts_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_waits_between_commands_do_not_count_and_restarts_do(config: RunConfig, trained: Any) -> None:
    run = trained(config, "resumed", **TIMES)
    write_attempts(
        run,
        ("10:00:00", "10:01:00", "1"),
        ("10:01:10", "10:02:00", "1"),  # started again by the launcher
        ("11:00:00", "11:00:30", "2"),  # by a person
    )
    run.metrics.write_text("")
    found = actual(run)
    assert found is not None
    assert found.wall_s == 120 + 50  # the second command's own time is in FINISHED


def test_the_parts_of_a_resumed_run_come_from_its_metrics(config: RunConfig, trained: Any) -> None:
    run = trained(config, "resumed", **TIMES)
    write_attempts(run, ("10:00:00", "10:01:00", "1"), ("11:00:00", "11:00:30", "2"))
    records = [
        {"kind": "event", "step": 0, "event": "started", "detail": {}},
        {"kind": "train", "step": 10, "step_time_s": 2.0, "epoch": 1.0},
        {"kind": "event", "step": 10, "event": "started", "detail": {}},
        {"kind": "train", "step": 20, "step_time_s": 3.0, "epoch": 2.0},
        {"kind": "eval", "step": 20, "time_s": 6.0, "num_samples": 25},
        {"kind": "event", "step": 20, "event": "checkpoint", "detail": {"stalled_s": 0.5}},
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = actual(run)
    assert found is not None
    assert found.parts == {"training_s": 50, "evaluation_s": 6, "saving_s": 0.5, "start_s": 60 + 50 - 56.5}


def test_an_unfinished_run_is_evidence_for_its_own_rest(config: RunConfig, trained: Any) -> None:
    config = replace(config, data=replace(config.data, num_samples=None))
    run = trained(config, "half", **TIMES)
    run.finished_file.unlink()
    records = [
        {"kind": "train", "step": 5, "step_time_s": 2.0, "epoch": 0.5},
        {"kind": "train", "step": 10, "step_time_s": 4.0, "epoch": 1.0},
        {"kind": "eval", "step": 10, "time_s": 6.0, "num_samples": 25},
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = earlier_run(run)
    assert found is not None
    assert (found.work.steps, found.times.training_s, found.times.evaluation_s) == (10, 30, 6)
    assert (found.work.evaluated_images, found.images.num_samples) == (25, 100)
    run.metrics.write_text("")
    assert earlier_run(run) is None


@pytest.mark.parametrize(
    ("facts", "on_gpu", "expected"),
    [
        ({"cpu": "EPYC", "num_cpus_allowed": 8, "gpus": ["H100", "H100"]}, True, "H100"),
        ({"cpu": "EPYC", "num_cpus_allowed": 8}, False, "EPYC, 8 cores"),
        ({"host": "old", "num_cpus_allowed": 8}, False, "old, 8 cores"),  # of version 0.1
        ({"gpus": "torn"}, True, ""),
        ({}, False, ""),
    ],
)
def test_the_device_of_an_environment(facts: dict[str, Any], on_gpu: bool, expected: str) -> None:
    assert device_name(facts, on_gpu=on_gpu) == expected


def test_the_number_of_workers_is_that_of_the_attempt(config: RunConfig, trained: Any) -> None:
    config = replace(config, batch=BatchRecipe(size=10), resources=Resources(cpus_per_worker=2))
    run = trained(config, "torchrun", **TIMES)
    text = run.attempts_file.read_text().replace('"workers": 1', '"workers": 2')
    run.attempts_file.write_text(text)
    found = earlier_run(run)
    assert found is not None
    assert (found.work.workers, found.work.worker_images) == (2, 5)
    assert configs.load(run.config, recorded=True).workers.most == 1

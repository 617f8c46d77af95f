"""Whether the job of a run is requeued, by the run's record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.recovery.requeue import decide
from launcher.run.directory import RunDirectory

FAULT, STOPPED = 76, 75


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "slurm-7")
    return RunDirectory(tmp_path, "long")


def save(run: RunDirectory, step: int) -> None:
    (run.checkpoints / f"step-{step:08}").mkdir(parents=True)


def requeues(run: RunDirectory, code: int, most: int) -> int:
    """The number of requeues in a row, at most 50."""
    return next((number for number in range(50) if not decide(run, code, most).requeue), 50)


def test_ends_of_the_walltime_do_not_count_while_the_run_makes_progress(run: RunDirectory) -> None:
    for number in range(1, 30):
        save(run, 100 * number)
        found = decide(run, STOPPED, 2)
        assert (found.exit_code, found.requeue) == (STOPPED, True)
        assert found.reason == f"restart {number}; 0 of at most 2 after faults or without progress"
    assert requeues(run, STOPPED, 2) == 2  # no newer checkpoint


def test_faults_count_also_after_progress(run: RunDirectory) -> None:
    for number in range(1, 4):
        save(run, 100 * number)
        assert decide(run, FAULT, 3).requeue
    save(run, 1000)
    assert decide(run, STOPPED, 3).requeue  # does not count
    last = decide(run, FAULT, 3)
    assert (last.exit_code, last.requeue) == (FAULT, False)
    assert "cluster.max_requeues allows 3 restarts after faults or without progress" in last.reason


def test_none_allowed_is_none(run: RunDirectory) -> None:
    save(run, 100)
    assert requeues(run, STOPPED, 0) == 0


def test_restarts_of_another_submission_do_not_count(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requeues(run, FAULT, 2) == 2
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "slurm-8")
    assert requeues(run, FAULT, 2) == 2


@pytest.mark.parametrize(("code", "again"), [(65, False), (78, False), (79, False), (76, True), (69, True)])
def test_a_submission_that_failed_for_good_ends_with_the_code_of_its_failure(
    run: RunDirectory, code: int, again: bool
) -> None:
    run.create()
    run.mark_fatal(code, "DataError: a.jpg is torn\n  and more", submission="slurm-7")
    found = decide(run, FAULT, 20)
    assert (found.exit_code, found.requeue) == ((FAULT, True) if again else (code, False))
    assert again or found.reason == "a restart would fail in the same way: DataError: a.jpg is torn"
    run.mark_fatal(code, "of an earlier submission", submission="slurm-6")
    assert decide(run, FAULT, 20).requeue


def test_a_torn_line_is_left_out(run: RunDirectory) -> None:
    assert decide(run, FAULT, 2).requeue
    run.requeues.write_bytes(run.requeues.read_bytes() + b'{"submission": "slurm-7", "ti\n{"step": null}\n')
    assert requeues(run, FAULT, 2) == 1


def test_the_script_reads_one_line(run: RunDirectory) -> None:
    command = [sys.executable, "-m", "launcher.recovery.requeue", str(run.path), "76", "1"]
    outputs = [
        subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == "76 requeue restart 1; 1 of at most 1 after faults or without progress\n"
    assert outputs[1].startswith("76 end cluster.max_requeues allows 1 restart after")
    assert outputs[1].count("\n") == 1

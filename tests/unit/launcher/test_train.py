"""Starts of a run that has ended, by a scheduler that repeats a submission and by a person."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import ClusterUnavailable, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.local.spares import Spares
from launcher.recovery.attempt import AttemptResult
from launcher.recovery.root_cause import record_failure
from launcher.run.directory import RunDirectory
from launcher.run.lease import acquire
from launcher.run.status import read_status
from launcher.signals import StopSignals
from launcher.train import main, report, train
from resnet_dist.errors import DataError, MissingPackage

Started = list[RunConfig]


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return configs.load(write_config("place: local"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The configs of all runs that start training; they stop at once."""
    runs: Started = []

    def run_local(config: RunConfig, *_: object, **__: object) -> tuple[ExitCode, AttemptResult]:
        runs.append(config)
        return ExitCode.STOPPED, AttemptResult(3, finished=False)

    monkeypatch.setattr("launcher.local.run.run_local", run_local)
    monkeypatch.delenv("LAUNCHER_SUBMISSION", raising=False)
    return runs


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, small_run: RunDirectory) -> Callable[..., None]:
    """Record a failure of the run, under a submission."""

    def end(error: Exception, submission: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("LAUNCHER_SUBMISSION", submission)
            record_failure(small_run, error)

    return end


def test_a_submission_that_failed_for_good_is_not_repeated(
    config: RunConfig,
    started: Started,
    ended: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended(DataError("a.jpg", "broken"), "try-1")
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    code, run = train(config)
    assert (code, started) == (65, [])
    assert run.fatal() is not None
    output = capsys.readouterr().out
    assert "this submission failed for good" in output
    assert "DataError: a.jpg: broken" in output


@pytest.mark.parametrize("submission", ["try-2", None])
def test_a_new_submission_and_a_person_start_normally(
    config: RunConfig,
    started: Started,
    ended: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    submission: str | None,
) -> None:
    ended(DataError("a.jpg", "broken"), "try-1")
    if submission is not None:
        monkeypatch.setenv("LAUNCHER_SUBMISSION", submission)
    assert train(config)[0] == 75
    assert len(started) == 1


def test_a_failure_of_a_person_does_not_affect_a_submission(
    config: RunConfig, started: Started, ended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(DataError("a.jpg", "broken"), "")
    assert train(config)[0] == 75
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    assert train(config)[0] == 75
    assert len(started) == 2


@pytest.mark.parametrize("error", [WorkerLost("node-7", 1, "killed"), ClusterUnavailable("no node")])
def test_a_failure_that_may_not_repeat_on_other_machines_is_retried(
    config: RunConfig,
    started: Started,
    ended: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    ended(error, "try-1")
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    assert train(config)[0] == 75
    assert len(started) == 1


def test_a_failure_during_the_wait_for_the_predecessor_is_seen(
    config: RunConfig,
    started: Started,
    ended: Callable[..., None],
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    predecessor = acquire(small_run.lease, submission="try-1")

    def nap(seconds: float) -> None:
        ended(DataError("a.jpg", "broken"), "try-1")
        predecessor.release()

    monkeypatch.setattr("launcher.run.lease.time.sleep", nap)
    assert train(config, progress=Progress())[0] == 65
    assert started == []


def test_a_finished_run_that_must_not_be_resumed_is_not_compared(
    config: RunConfig, started: Started, small_run: RunDirectory
) -> None:
    small_run.mark_finished({"duration": "100 steps"})
    assert train(config, "never")[0] == 75
    assert len(started) == 1


@pytest.fixture
def stopped() -> StopSignals:
    """Signals of which one has arrived."""
    with StopSignals(announce=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    return stop


def test_a_signal_before_training_begins_leaves_nothing_and_says_so(
    config: RunConfig, stopped: StopSignals, capsys: pytest.CaptureFixture[str]
) -> None:
    code, run = train(config, stop=stopped)
    assert (code, run.attempts(), run.fatal()) == (75, [], None)
    assert capsys.readouterr().out == "stopped before the first step; nothing was trained\n"
    acquire(run.lease).release()  # it is free


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
def test_ctrl_c_during_a_restart_is_a_stop_of_the_next_attempt(
    begun: bool,
    config: RunConfig,
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_run.end_attempt(small_run.begin_attempt(), 1, "UserCodeError: of an earlier command", 3)

    def run_local(*_: object, **__: object) -> tuple[ExitCode, AttemptResult]:
        failed = small_run.begin_attempt({"place": "local", "workers": 1, "from_step": 3})
        small_run.end_attempt(failed, 1, "UserCodeError: why", 5)
        if begun:
            small_run.begin_attempt({"place": "local", "workers": 1, "from_step": 3})
        return ExitCode.INTERRUPTED, AttemptResult(3, finished=False, trained=False)

    monkeypatch.setattr("launcher.local.run.run_local", run_local)
    assert train(config)[0] == 130
    *_, failed, stopped = small_run.attempts()
    assert (failed.number, failed.exit_code) == (2, 1)
    assert (stopped.number, stopped.exit_code, stopped.cause, stopped.last_step) == (3, 130, "stopped on request", 3)
    assert dict(stopped.facts) == {"place": "local", "workers": 1, "from_step": 3}
    status = read_status(small_run, None, stale_lease_wait_s=0.0)
    assert (status.state, status.exit_code, status.attempt) == ("stopped", 130, 3)
    said = "stopped before the next attempt made a step; the newest checkpoint is of step 3; the same command resumes"
    assert said in capsys.readouterr().out


def test_ctrl_c_before_the_first_attempt_leaves_the_failure_of_an_earlier_command(
    config: RunConfig, stopped: StopSignals, small_run: RunDirectory
) -> None:
    small_run.end_attempt(small_run.begin_attempt(), 1, "UserCodeError: why", 3)
    assert train(config, stop=stopped)[0] == 75
    assert [attempt.exit_code for attempt in small_run.attempts()] == [1]


def test_a_required_package_that_is_missing_is_no_error_of_the_users_code(
    config: RunConfig, small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "launcher.local.run", raising=False)
    monkeypatch.delattr("launcher.local.run", raising=False)
    with pytest.raises(MissingPackage, match="needs torch, which is not installed here") as caught:
        train(config)
    fatal = small_run.fatal()
    assert fatal is not None
    assert (fatal.exit_code, report(caught.value)) == (78, 78)
    assert report(ModuleNotFoundError("No module named 'torch'", name="torch")) == 78
    assert configs.in_users_lines(caught.value, small_run.config) is caught.value  # no line of the config is wrong
    shown = capsys.readouterr().err.splitlines()
    assert set(shown) == {
        "error: resnet-launcher: needs torch, which is not installed here. Allowed: install it with: pip install torch"
    }


def test_a_process_that_the_same_ctrl_c_has_ended_is_not_reported(
    config: RunConfig, stopped: StopSignals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    spares = Spares(Progress())
    spares.start()
    spares._idle[0].process.wait()
    assert train(config, attended=True, stop=stopped, spares=spares)[0] == 75
    assert capsys.readouterr().out == "stopped before the first step; nothing was trained\n"


def test_a_signal_ends_the_wait_for_the_predecessor(
    config: RunConfig,
    started: Started,
    stopped: StopSignals,
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    predecessor = acquire(small_run.lease, submission="try-1")
    code, _ = train(config, stop=stopped)
    predecessor.release()
    assert (code, started) == (75, [])
    assert "in use by process" in capsys.readouterr().out


def test_a_lease_that_cannot_be_released_does_not_change_the_result(
    config: RunConfig, small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_local(*_: object, **__: object) -> tuple[ExitCode, AttemptResult]:
        shutil.rmtree(small_run.lease)
        return ExitCode.STOPPED, AttemptResult(3, finished=False)

    monkeypatch.setattr("launcher.local.run.run_local", run_local)
    assert train(config)[0] == 75


def test_an_interrupt_of_the_users_program_is_recorded_as_the_end_of_the_attempt(
    config: RunConfig, small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.begin_attempt()  # of an earlier process, which was killed

    def run_local(*_: object, **__: object) -> tuple[ExitCode, AttemptResult]:
        small_run.begin_attempt()
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.local.run.run_local", run_local)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    cause = "ended by a second Ctrl-C; there is no checkpoint"
    assert [(attempt.exit_code, attempt.cause) for attempt in small_run.attempts()] == [(None, None), (130, cause)]


def test_a_key_with_dashes_is_named_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digits.yaml", "--batch.size=64"]) == 64
    assert "Allowed: keys of a config without dashes: batch.size=64\n" in capsys.readouterr().err

"""Started again: by a place that repeats a submission, and by a person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import train as module
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import ClusterUnavailable, WorkerLost
from launcher.recovery import root_cause as fatal
from launcher.run.directory import RunDirectory
from launcher.run.lease import acquire
from launcher.train import train
from resnet_dist.errors import DataError

Started = list[dict[str, Any]]


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return configs.load(write_config("place: local"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Every run that is carried out, which is stopped at once."""
    runs: Started = []

    def carried_out(*arguments: Any) -> tuple[Any, dict[str, Any]]:
        runs.append({"config": arguments[0]})
        return module.ExitCode.STOPPED, {"step": 3, "finished": False}

    monkeypatch.setattr(module, "_carried_out", carried_out)
    monkeypatch.delenv("LAUNCHER_SUBMISSION", raising=False)
    return runs


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, small_run: RunDirectory) -> Callable[..., None]:
    """End the run for good, under a submission."""

    def end(error: Exception, submission: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("LAUNCHER_SUBMISSION", submission)
            fatal.tell(small_run, error)

    return end


def test_a_submission_that_has_ended_for_good_is_not_repeated(
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
    assert "this submission ended for good" in output
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


def test_what_a_person_has_ended_for_good_binds_no_submission(
    config: RunConfig, started: Started, ended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(DataError("a.jpg", "broken"), "")
    assert train(config)[0] == 75
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "try-1")
    assert train(config)[0] == 75
    assert len(started) == 2


@pytest.mark.parametrize("error", [WorkerLost("node-7", 1, "killed"), ClusterUnavailable("no node")])
def test_what_may_go_better_on_other_machines_is_repeated(
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


def test_an_end_that_comes_while_the_predecessor_is_waited_for_is_seen(
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

"""Node failures of earlier sessions of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.console import Progress
from launcher.errors import LauncherError, WorkerHung, WorkerLost
from launcher.recovery.attempt import AttemptSpec
from launcher.recovery.handler import FailureHandler
from launcher.recovery.notify import Notifier
from launcher.recovery.session import Session
from launcher.run.directory import RunDirectory
from resnet_dist.errors import DataError

SLOTS = {"node-1": 1, "node-2": 1, "node-3": 1}
Make = Callable[..., FailureHandler]


@pytest.fixture
def session(write_config: Callable[..., Path], small_run: RunDirectory) -> Iterator[Make]:
    """The failure handler of a new session, which knows only what is in the run directory."""
    notifiers: list[Notifier] = []

    def make(*more: str) -> FailureHandler:
        config = configs.load(write_config("workers: 1..3", *more))
        notifiers.append(Notifier(config.notify, small_run))
        return FailureHandler(Session(config, small_run, Progress(), notifiers[-1]))

    yield make
    for notifier in notifiers:
        notifier.close()


def fail(handler: FailureHandler, run: RunDirectory, error: LauncherError | DataError, node: str) -> Any:
    attempt = AttemptSpec(run.begin_attempt({"place": "ray"}), began=0.0)
    return handler.handle(error, attempt, SLOTS, node)


def test_a_node_that_fails_once_in_each_of_two_sessions_is_excluded(session: Make, small_run: RunDirectory) -> None:
    fail(session(), small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    second = session()
    second.exclude_failed_nodes()
    assert second.history.excluded == ()
    decision = fail(second, small_run, WorkerHung("node-2", 1, "step", 7, "no progress"), "node-2")
    assert decision.history.excluded == ("node-2",)
    assert "node node-2 failed 2 times and is excluded" in decision.reason


def test_an_excluded_node_stays_excluded_and_is_named_with_the_way_back(
    session: Make, small_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    first = session()
    for _ in range(2):
        fail(first, small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    second = session()
    second.exclude_failed_nodes()
    assert (second.history.excluded, second.history.failures) == (
        ("node-2",),
        0,
    )  # the count of failures starts again in each session
    output = capsys.readouterr().out
    assert "node node-2 failed 2 times in this run and is excluded" in output
    assert "faults.max_node_failures=3 includes it again" in output
    third = session("faults: {max_node_failures: 3}")
    third.exclude_failed_nodes()
    assert third.history.excluded == ()


def test_an_error_that_blames_no_node_is_not_counted(session: Make, small_run: RunDirectory) -> None:
    for _ in range(2):
        with pytest.raises(DataError):
            fail(session(), small_run, DataError("a.jpg", "broken"), "node-2")
    assert session().history.node_failures == {}


def test_all_nodes_are_used_if_too_few_are_left(session: Make, small_run: RunDirectory) -> None:
    first = session()
    for _ in range(2):
        fail(first, small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    first.include_all_nodes()
    assert first.history.excluded == ()
    assert first.history.node_failures == {"node-2": 2}

"""What a driver that starts anew knows of the run's earlier failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.console import Progress
from launcher.errors import LauncherError, WorkerHung, WorkerLost
from launcher.recovery.handler import Recovery
from launcher.recovery.notify import Notifier
from launcher.run.directory import RunDirectory
from resnet_dist.errors import DataError

SLOTS = {"node-1": 1, "node-2": 1, "node-3": 1}
Make = Callable[..., Recovery]


@pytest.fixture
def driver(write_config: Callable[..., Path], small_run: RunDirectory) -> Iterator[Make]:
    """A driver's recovery: a later one knows what is in the run directory alone."""
    notifiers: list[Notifier] = []

    def make(*more: str) -> Recovery:
        config = configs.load(write_config("workers: 1..3", *more))
        notifiers.append(Notifier(config.notify, small_run))
        return Recovery(config, small_run, Progress(), notifiers[-1])

    yield make
    for notifier in notifiers:
        notifier.close()


def fail(recovery: Recovery, run: RunDirectory, error: LauncherError | DataError, node: str) -> Any:
    number = run.begin_attempt({"place": "ray"})
    return recovery.failed(error, number, 0, 0.0, SLOTS, node)


def test_a_node_at_fault_once_under_each_of_two_drivers_is_left_out(driver: Make, small_run: RunDirectory) -> None:
    fail(driver(), small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    second = driver()
    second.leave_out_struck()
    assert second.history.excluded == ()
    decision = fail(second, small_run, WorkerHung("node-2", 1, "step", 7, "no progress"), "node-2")
    assert decision.history.excluded == ("node-2",)
    assert "node node-2 was at fault 2 times and is left out" in decision.reason


def test_a_node_that_was_left_out_stays_so_and_is_named_with_the_way_back(
    driver: Make, small_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    first = driver()
    for _ in range(2):
        fail(first, small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    second = driver()
    second.leave_out_struck()
    assert (second.history.excluded, second.history.failures) == (("node-2",), 0)  # the budget is a driver's own
    output = capsys.readouterr().out
    assert "node node-2 was at fault 2 times in this run and is left out" in output
    assert "faults.node_strikes=3 lets it in again" in output
    third = driver("faults: {node_strikes: 3}")
    third.leave_out_struck()
    assert third.history.excluded == ()


def test_what_blames_no_node_is_no_strike(driver: Make, small_run: RunDirectory) -> None:
    for _ in range(2):
        with pytest.raises(DataError):
            fail(driver(), small_run, DataError("a.jpg", "broken"), "node-2")
    assert driver().history.strikes == {}


def test_all_nodes_are_used_where_too_few_are_left(driver: Make, small_run: RunDirectory) -> None:
    first = driver()
    for _ in range(2):
        fail(first, small_run, WorkerLost("node-2", 1, "killed"), "node-2")
    first.use_all()
    assert first.history.excluded == ()
    assert first.history.strikes == {"node-2": 2}

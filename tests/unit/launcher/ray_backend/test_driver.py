"""What the driver makes of a cluster that does not answer it; none is needed for that."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ray.exceptions import RayError

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import ClusterUnavailable, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.ray_backend import cluster as ray_cluster
from launcher.ray_backend.attempt import Why
from launcher.ray_backend.cluster import Cluster
from launcher.ray_backend.driver import _Driver
from launcher.ray_backend.failures import ClusterGone
from launcher.recovery import resume
from launcher.recovery.history import policy_of
from launcher.recovery.notify import Notifier
from launcher.run.directory import RunDirectory
from launcher.run.lease import LeaseLost, acquire
from launcher.signals import StopSignals


class NoAnswer:
    """A cluster that does not answer."""

    def __init__(self) -> None:
        self.leaving: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fails(*_: object) -> None:
            raise RayError("no answer")

        return fails


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return configs.load(write_config())


@pytest.fixture
def driver(config: RunConfig, small_run: RunDirectory) -> Iterator[_Driver]:
    notifier = Notifier(config.notify, small_run)
    driver = _Driver(config, small_run, Progress(), notifier)
    driver._cluster = NoAnswer()  # type: ignore[assignment]
    yield driver
    notifier.close()


def begin(driver: _Driver, run: RunDirectory) -> int:
    driver._attempt = run.begin_attempt({"place": "ray"})
    driver._began = time.time()
    return driver._attempt


def test_a_failure_that_no_cluster_answers_for_ends_with_69(driver: _Driver, small_run: RunDirectory) -> None:
    begin(driver, small_run)
    with pytest.raises(ClusterGone, match="gone") as raised:
        driver._failed(WorkerLost("a", 0, "killed", "n1"), StopSignals())
    assert "it was asked because of WorkerLost: worker 0 on a: killed" in raised.value.__notes__
    assert [attempt.exit_code for attempt in small_run.attempts()] == [69]


def test_an_error_of_ray_itself_ends_the_attempt_with_69(driver: _Driver, small_run: RunDirectory) -> None:
    begin(driver, small_run)
    with pytest.raises(ClusterGone):
        driver._failed(RayError("no answer"), StopSignals())
    assert [attempt.exit_code for attempt in small_run.attempts()] == [69]


def test_a_cluster_that_is_gone_after_a_stop_leaves_the_end_in_the_record(
    driver: _Driver, small_run: RunDirectory
) -> None:
    number = begin(driver, small_run)
    with pytest.raises(ClusterGone):
        driver._ended({"step": 7, "finished": False}, number, Why.PREEMPTED, StopSignals())
    assert [(attempt.exit_code, attempt.last_step) for attempt in small_run.attempts()] == [(75, 7)]


def test_a_cluster_that_is_gone_before_the_workers_start_is_told_as_such(driver: _Driver) -> None:
    with pytest.raises(ClusterGone):
        driver.run(resume.Start(driver._config, None, 0, ()))


def test_a_run_whose_head_goes_away_ends_saved_though_other_nodes_are_left(
    driver: _Driver, small_run: RunDirectory
) -> None:
    class HeadLeaves:
        leaving: ClassVar = {"head"}

        def slots(self) -> dict[str, int]:
            return {"a": 4}

        def heads(self) -> set[str]:
            return {"head"}

    driver._cluster = HeadLeaves()  # type: ignore[assignment]
    number = begin(driver, small_run)
    ended = driver._ended({"step": 7, "finished": False}, number, Why.PREEMPTED, StopSignals())
    assert ended == (ExitCode.STOPPED, {"step": 7, "finished": False, "preempted": True})


def test_a_notice_without_its_content_names_no_node(driver: _Driver, small_run: RunDirectory) -> None:
    number = begin(driver, small_run)
    small_run.logs(number).preemption_notice(0).touch()
    small_run.logs(number).preemption_notice(1).write_text('{"node_id": "n1"}')
    assert driver._noticed(number) == {"n1"}


# --- nodes that do not answer


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Two nodes with a CPU each, and whether they answer; nobody waits between two looks."""
    nodes = [
        {"NodeID": f"id-{name}", "NodeManagerHostname": name, "NodeManagerAddress": name, "Alive": True}
        | {"Resources": {"CPU": 1.0}}
        for name in "ab"
    ]
    answers = {"id-a": True, "id-b": True}
    monkeypatch.setattr("launcher.ray_backend.cluster.ray.nodes", lambda: nodes)
    free = {node["NodeID"]: {"CPU": 1.0} for node in nodes}
    monkeypatch.setattr("launcher.ray_backend.cluster.ray_state.available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray_cluster, "_answers", lambda node_id: answers[node_id])
    monkeypatch.setattr(ray_cluster, "POLL_S", 0.0)
    return answers


def test_a_node_that_answers_again_is_used_again(
    two_nodes: dict[str, bool], write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(write_config("workers: 1..2"))
    cluster = Cluster(config)
    two_nodes["id-b"] = False
    cluster.check("id-b")
    assert cluster.slots() == {"a": 1}
    assert cluster.wait_for_workers(policy_of(config), (), 60.0, lambda: False) == 1  # it was asked just now
    two_nodes["id-b"] = True
    monkeypatch.setattr(ray_cluster, "ASK_AGAIN_S", -1.0)
    assert cluster.wait_for_workers(policy_of(config), (), 60.0, lambda: False) == 2


def test_nodes_without_an_answer_are_named(two_nodes: dict[str, bool], write_config: Callable[..., Path]) -> None:
    config = configs.load(write_config("workers: 2"))
    cluster = Cluster(config)
    two_nodes["id-b"] = False
    cluster.check("id-b")
    with pytest.raises(ClusterUnavailable, match=r"a: room for 1, 1 free; no answer from: b"):
        cluster.wait_for_workers(policy_of(config), (), -1.0, lambda: False)


def struck(run: RunDirectory, node: str, times: int) -> None:
    for _ in range(times):
        facts = {"class": "WorkerLost", "node": node}
        run.end_attempt(run.begin_attempt({"place": "ray"}), 76, "WorkerLost: killed", 3, facts)


@pytest.mark.parametrize(("workers", "excluded"), [("1..2", ("b",)), ("2", ())])
def test_a_node_at_fault_under_an_earlier_driver_is_left_out_unless_too_few_are_left(
    two_nodes: dict[str, bool],
    write_config: Callable[..., Path],
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: str,
    excluded: tuple[str, ...],
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setenv("RAY_ADDRESS", "there")
    struck(small_run, "b", 2)
    config = configs.load(write_config(f"workers: {workers}"))
    notifier = Notifier(config.notify, small_run)
    driver = _Driver(config, small_run, Progress(), notifier)
    counted: list[int] = []

    def one(start: resume.Start, count: int, signals: StopSignals) -> tuple[ExitCode, dict[str, Any]]:
        counted.append(count)
        return ExitCode.OK, {"step": 9, "finished": True}

    driver._one = one  # type: ignore[assignment]
    driver.run(resume.Start(driver._config, None, 0, ()))
    notifier.close()
    assert counted == [1 if excluded else 2]
    assert driver._recovery.history.excluded == excluded
    output = capsys.readouterr().out
    assert "node b was at fault 2 times in this run and is left out" in output
    assert ("left out for their faults: b; they are used all the same" in output) == (not excluded)


# --- a driver that stood still


def test_a_driver_that_has_lost_the_lease_starts_no_attempt(
    driver: _Driver, small_run: RunDirectory, tmp_path: Path
) -> None:
    held = acquire(small_run.lease, renew_every_s=3600)
    driver._held = held
    (small_run.lease / "00000002.json").write_bytes((small_run.lease / "00000001.json").read_bytes())
    with pytest.raises(LeaseLost):
        driver._begin(resume.Start(driver._config, None, 0, ()), 1, StopSignals())
    held.release()
    assert small_run.attempts() == []


def test_a_worker_that_has_lost_the_lease_ends_the_run_and_leaves_its_record_alone(
    driver: _Driver, small_run: RunDirectory
) -> None:
    number = begin(driver, small_run)
    with pytest.raises(LeaseLost):
        driver._failed(LeaseLost("run", None), StopSignals())
    assert [attempt.ended for attempt in small_run.attempts()] == [None]
    assert not small_run.incident(number).exists()

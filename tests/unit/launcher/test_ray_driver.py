"""What the driver makes of a cluster that does not answer it; none is needed for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from launcher import config as configs
from launcher import ray_cluster, resume
from launcher.attempts import policy_of
from launcher.errors import ClusterUnavailable, WorkerLost
from launcher.notify import Notifier
from launcher.progress import Progress
from launcher.ray_attempt import Why
from launcher.ray_cluster import Cluster
from launcher.ray_driver import _Driver
from launcher.ray_failures import ClusterGone
from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory
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
        driver.run(resume.Start(None, 0, ()))


def test_a_notice_without_its_content_names_no_node(driver: _Driver, small_run: RunDirectory) -> None:
    number = begin(driver, small_run)
    (small_run.logs(number) / "notice-rank-0.json").touch()
    (small_run.logs(number) / "notice-rank-1.json").write_text('{"node_id": "n1"}')
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
    monkeypatch.setattr("launcher.ray_cluster.ray.nodes", lambda: nodes)
    free = {node["NodeID"]: {"CPU": 1.0} for node in nodes}
    monkeypatch.setattr("launcher.ray_cluster.ray_state.available_resources_per_node", lambda: free)
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

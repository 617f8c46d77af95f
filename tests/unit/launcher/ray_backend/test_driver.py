"""The driver on clusters that fail, shrink or do not answer. Clusters and `fit()` are replaced."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from ray.exceptions import RayError

from launcher.errors import ClusterUnavailable, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.ray_backend import cluster as ray_cluster
from launcher.ray_backend import driver as module
from launcher.ray_backend.attempt import StopReason
from launcher.ray_backend.cluster import Cluster
from launcher.ray_backend.driver import Driver
from launcher.ray_backend.failures import ClusterGone
from launcher.recovery import resume
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.history import retry_policy
from launcher.recovery.session import Session
from launcher.run.directory import RunDirectory
from launcher.run.lease import LeaseLost, acquire

MakeSession = Callable[..., Session]
STOPPED = AttemptResult(7, finished=False)


class LiveCluster:
    """A cluster with 4 places on node a and the head on another node; it may end, with no answer to any query."""

    def __init__(self, *, leaving: set[str] | None = None, answers: bool = True) -> None:
        self.leaving, self.answers = leaving or set(), answers

    def _query(self) -> None:
        if not self.answers:
            raise RayError("no answer")

    def wait_for_workers(self, *_: object) -> int:
        self._query()
        return 1

    def slots(self) -> dict[str, int]:
        self._query()
        return {"a": 4}

    def heads(self) -> set[str]:
        self._query()
        return {"head"}

    def key(self, node_id: str | None) -> str | None:
        self._query()
        return node_id

    def check(self, node_id: str | None) -> None:
        self._query()


class FakeFit:
    """A `fit()` that returns or raises what it is given, and counts its workers."""

    def __init__(self, end: AttemptResult | Exception, cluster: LiveCluster | None, reason: StopReason | None) -> None:
        self.end, self.cluster, self.stop_reason, self.given_up = end, cluster, reason, None
        self.workers: list[int] = []

    def __call__(self, session: Session, workers: int, *_: object) -> FakeFit:
        self.workers.append(workers)
        return self

    def run(self, spec: AttemptSpec) -> AttemptResult:
        if self.cluster is not None:
            self.cluster.answers = False  # it ends during the attempt
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


@pytest.fixture
def drive(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ExitCode, AttemptResult]]:
    """Run a driver whose `fit()` ends as given; the cluster ends with it, or stays."""

    def run(
        end: AttemptResult | Exception,
        cluster: LiveCluster | None = None,
        *,
        cluster_ends: bool = False,
        reason: StopReason | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> tuple[ExitCode, AttemptResult]:
        cluster = LiveCluster() if cluster is None else cluster
        monkeypatch.setattr(module, "Fit", FakeFit(end, cluster if cluster_ends else None, reason))
        changed = dataclasses.replace(session, **(changes or {}))
        return Driver(changed, cluster).run(resume.Start(session.config, None, 0, ()))  # type: ignore[arg-type]

    return run


Drive = Callable[..., tuple[ExitCode, AttemptResult]]


def test_a_failure_after_which_the_cluster_does_not_answer_ends_with_69(drive: Drive, small_run: RunDirectory) -> None:
    with pytest.raises(ClusterGone, match="the Ray cluster has ended") as raised:
        drive(WorkerLost("a", 0, "killed", "n1"), cluster_ends=True)
    assert "the cluster was queried because of WorkerLost: worker 0 on a: killed" in raised.value.__notes__
    assert [attempt.exit_code for attempt in small_run.attempts()] == [69]


def test_an_error_of_ray_itself_ends_the_attempt_with_69(drive: Drive, small_run: RunDirectory) -> None:
    with pytest.raises(ClusterGone):
        drive(RayError("no answer"), cluster_ends=True)
    assert [attempt.exit_code for attempt in small_run.attempts()] == [69]


def test_the_end_of_an_attempt_is_recorded_although_the_cluster_is_gone(drive: Drive, small_run: RunDirectory) -> None:
    with pytest.raises(ClusterGone):
        drive(STOPPED, cluster_ends=True, reason=StopReason.PREEMPTED)
    assert [(attempt.exit_code, attempt.last_step) for attempt in small_run.attempts()] == [(75, 7)]


def test_a_cluster_that_is_gone_before_the_workers_start_is_reported(drive: Drive, small_run: RunDirectory) -> None:
    with pytest.raises(ClusterGone):
        drive(STOPPED, LiveCluster(answers=False))
    assert small_run.attempts() == []


def test_a_run_whose_head_leaves_ends_saved_although_other_nodes_are_left(drive: Drive) -> None:
    ended = drive(STOPPED, LiveCluster(leaving={"head"}), reason=StopReason.PREEMPTED)
    assert ended == (ExitCode.STOPPED, AttemptResult(7, finished=False, preempted=True))


def test_an_empty_preemption_notice_names_no_node(drive: Drive, small_run: RunDirectory) -> None:
    logs = small_run.logs(1)
    notices = {logs.preemption_notice(0): "", logs.preemption_notice(1): '{"node_id": "head"}'}

    class Preempted(FakeFit):
        def run(self, spec: AttemptSpec) -> AttemptResult:
            for file, content in notices.items():
                file.write_text(content)
            return STOPPED

    cluster = LiveCluster()
    fit = Preempted(STOPPED, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeFit, "run", lambda self, spec: fit.run(spec))
        code, result = drive(STOPPED, cluster)
    assert (code, result.preempted, cluster.leaving) == (ExitCode.STOPPED, True, {"head"})
    assert [attempt.end_facts for attempt in small_run.attempts()] == [{"leaving": ["head"]}]


# --- a driver that was suspended


def test_a_driver_that_has_lost_the_lease_starts_no_attempt(drive: Drive, small_run: RunDirectory) -> None:
    held = acquire(small_run.lease, renew_every_s=3600)
    (small_run.lease / "00000002.json").write_bytes((small_run.lease / "00000001.json").read_bytes())
    with pytest.raises(LeaseLost):
        drive(STOPPED, changes={"lease": held})
    held.release()
    assert small_run.attempts() == []


def test_a_worker_that_has_lost_the_lease_ends_the_run_and_records_nothing(
    drive: Drive, small_run: RunDirectory
) -> None:
    with pytest.raises(LeaseLost):
        drive(LeaseLost("run", None))
    assert [attempt.ended for attempt in small_run.attempts()] == [None]
    assert not small_run.incident(1).exists()


# --- nodes that do not answer


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Two nodes with one CPU each, and whether they answer; queries do not wait."""
    nodes = [
        {"NodeID": f"id-{name}", "NodeManagerHostname": name, "NodeManagerAddress": name, "Alive": True}
        | {"Resources": {"CPU": 1.0}}
        for name in "ab"
    ]
    answers = {"id-a": True, "id-b": True}
    monkeypatch.setattr("launcher.ray_backend.cluster.ray.nodes", lambda: nodes)
    free = {node["NodeID"]: {"CPU": 1.0} for node in nodes}
    monkeypatch.setattr("launcher.ray_backend.cluster.ray_state.available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray_cluster, "node_answers", lambda node_id: answers[node_id])
    monkeypatch.setattr(ray_cluster, "POLL_S", 0.0)
    return answers


def test_a_node_that_answers_again_is_used_again(
    two_nodes: dict[str, bool], make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_session("workers: 1..2").config
    cluster, policy = Cluster(config.resources), retry_policy(config)
    two_nodes["id-b"] = False
    cluster.check("id-b")
    assert cluster.slots() == {"a": 1}
    assert cluster.wait_for_workers(policy, (), 60.0, lambda: False) == 1  # it was asked just now
    two_nodes["id-b"] = True
    monkeypatch.setattr(ray_cluster, "ASK_AGAIN_S", -1.0)
    assert cluster.wait_for_workers(policy, (), 60.0, lambda: False) == 2


def test_nodes_without_an_answer_are_named(two_nodes: dict[str, bool], make_session: MakeSession) -> None:
    config = make_session("workers: 2").config
    cluster = Cluster(config.resources)
    two_nodes["id-b"] = False
    cluster.check("id-b")
    with pytest.raises(ClusterUnavailable, match=r"a: capacity 1, 1 free; no answer from: b"):
        cluster.wait_for_workers(retry_policy(config), (), -1.0, lambda: False)


@pytest.mark.parametrize(("workers", "used"), [("1..2", 1), ("2", 2)])
def test_a_node_that_failed_in_an_earlier_session_is_excluded_unless_too_few_are_left(
    two_nodes: dict[str, bool],
    make_session: MakeSession,
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: str,
    used: int,
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setenv("RAY_ADDRESS", "there")
    for _ in range(2):
        facts = {"class": "WorkerLost", "node": "b"}
        small_run.end_attempt(small_run.begin_attempt({"place": "ray"}), 76, "WorkerLost: killed", 3, facts)
    session = make_session(f"workers: {workers}")
    fit = FakeFit(AttemptResult(9, finished=True), None, None)
    monkeypatch.setattr(module, "Fit", fit)
    code, _ = Driver(session, Cluster(session.config.resources)).run(resume.Start(session.config, None, 0, ()))
    assert (code, fit.workers) == (ExitCode.OK, [used])
    assert small_run.attempts()[-1].facts["excluded"] == (["b"] if used == 1 else [])
    output = capsys.readouterr().out
    assert "node b failed 2 times in this run and is excluded" in output
    assert ("excluded after failures: b; excluded nodes are used again" in output) == (used == 2)

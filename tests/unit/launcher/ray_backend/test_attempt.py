"""One `fit()`, supervised by the driver. Ray's trainer and its key-value store are replaced: no cluster is needed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.train.v2.api.exceptions import ControllerError

from launcher.errors import LauncherError
from launcher.ray_backend import attempt as module
from launcher.ray_backend.attempt import Fit, StopReason
from launcher.ray_backend.failures import NotPlaced
from launcher.ray_backend.handover import ATTEMPT, HandedBack, answer_key, failure_key
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.faults import rule_for
from launcher.recovery.history import retry_policy
from launcher.recovery.policy import Retry
from launcher.recovery.session import Session
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from resnet_dist.errors import DataError

RESULT = AttemptResult(7, finished=False)
BROKEN = DataError("a.jpg", "broken")


class Cluster:
    """A cluster with a draining node, which may fail to answer."""

    def __init__(self, *answers: Exception | set[str]) -> None:
        self.answers = list(answers)
        self.leaving: set[str] = set()

    def heads(self) -> set[str]:
        return {"head"}

    def ids(self, keys: object) -> list[str]:
        return []

    def draining(self) -> set[str]:
        answer = self.answers.pop(0) if self.answers else set[str]()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Mailbox:
    """The key-value store."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def put(self, key: str, value: object) -> None:
        self.values[key] = value

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def clear(self) -> None:
        self.values.clear()


StartFit = Callable[..., Fit]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    box = Mailbox({})
    monkeypatch.setattr(module, "Mailbox", lambda name: box)
    return box


@pytest.fixture
def spec(small_run: RunDirectory) -> AttemptSpec:
    """An attempt with one worker, on node n1."""
    number = small_run.begin_attempt({"place": "ray"})
    small_run.logs(number).heartbeats.mkdir()
    beat = Heartbeat(rank=0, host="a", pid=1, tick=1, phase="step", step=1, age_s=0.0, node_id="n1")
    heartbeats.write(small_run.logs(number), beat)
    return AttemptSpec(number)


@pytest.fixture
def make_fit(session: Session, box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> StartFit:
    """A `fit()` whose trainer is a function."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "DRAIN_EVERY_S", 0.0)

    def make(
        train: Callable[[], object],
        cluster: Cluster | None = None,
        on_failure: Callable[[Exception], AttemptSpec | None] = lambda error: None,
    ) -> Fit:
        trainer = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=train()))
        monkeypatch.setattr(module, "Trainer", lambda *_, **__: trainer)
        ray_cluster: Any = Cluster() if cluster is None else cluster
        return Fit(session, 1, ray_cluster, retry_policy(session.config), (), on_failure)

    return make


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_driver_checks_again_after_the_cluster_did_not_answer(
    make_fit: StartFit, small_run: RunDirectory, spec: AttemptSpec
) -> None:
    def train() -> AttemptResult:
        until(small_run.logs(spec.number).stop_request.exists)
        return RESULT

    cluster = Cluster(ray.exceptions.RayError("no answer"), OSError(5, "I/O error"), {"n1"})
    fit = make_fit(train, cluster)
    assert fit.run(spec) == RESULT
    assert (fit.stop_reason, cluster.leaving) == (StopReason.PREEMPTED, {"n1"})


@pytest.mark.parametrize(
    ("draining", "reason"), [("head", StopReason.PREEMPTED), ("n1", StopReason.PREEMPTED), ("other", None)]
)
def test_a_drain_of_the_head_counts_although_it_has_no_worker(
    draining: str, reason: StopReason | None, make_fit: StartFit, spec: AttemptSpec
) -> None:
    cluster = Cluster({draining})

    def train() -> AttemptResult:
        until(lambda: not cluster.answers)
        time.sleep(0.05)  # the check that took the answer ends
        return RESULT

    fit = make_fit(train, cluster)
    fit.run(spec)
    assert fit.stop_reason is reason
    assert cluster.leaving == ({draining} if reason else set())


def test_a_failure_is_answered_with_the_next_attempt(make_fit: StartFit, box: Mailbox, spec: AttemptSpec) -> None:
    def train() -> AttemptResult:
        box.put(failure_key(1), {0: BROKEN})
        until(lambda: box.get(answer_key(1)))
        assert box.get(ATTEMPT) == following
        return RESULT

    following, errors = AttemptSpec(spec.number + 1), list[Exception]()

    def on_failure(error: Exception) -> AttemptSpec:
        errors.append(error)
        return following

    assert make_fit(train, on_failure=on_failure).run(spec) == RESULT
    assert [(type(error), str(error)) for error in errors] == [(DataError, str(BROKEN))]


def test_a_signal_asks_the_workers_to_stop_as_soon_as_the_storage_accepts_it(
    make_fit: StartFit, session: Session, small_run: RunDirectory, spec: AttemptSpec
) -> None:
    logs = small_run.logs(spec.number)

    def train() -> AttemptResult:
        logs.path.rename(logs.path.with_name("away"))  # the request cannot be written
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: session.stop.stopped)
        time.sleep(0.1)
        logs.path.with_name("away").rename(logs.path)
        until(logs.stop_request.exists)
        return RESULT

    with session.stop:
        assert make_fit(train).run(spec) == RESULT


def stops(small_run: RunDirectory, shut_down: threading.Event) -> None:
    """Workers that stop at the next step."""
    until(small_run.logs(1).stop_request.exists)


def exits(small_run: RunDirectory, shut_down: threading.Event) -> None:
    """Workers that make no progress, and exit when they are asked to."""
    until(small_run.logs(1).end_request.exists)


def stays(small_run: RunDirectory, shut_down: threading.Event) -> None:
    """Workers that end with Ray only."""
    assert shut_down.wait(30)
    raise ray.exceptions.RayError("shut down")


@pytest.mark.parametrize(("workers", "by_ray"), [(stops, False), (exits, False), (stays, True)])
def test_an_error_of_the_driver_ends_its_workers_before_it_is_raised(
    workers: Callable[[RunDirectory, threading.Event], None],
    by_ray: bool,
    make_fit: StartFit,
    small_run: RunDirectory,
    spec: AttemptSpec,
    box: Mailbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shut_down, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(module.ray, "shutdown", shut_down.set)
    monkeypatch.setattr(module, "END_S", 30.0 if workers is stops else 1.0)

    def train() -> AttemptResult:
        try:
            workers(small_run, shut_down)
            return RESULT
        finally:
            ended.set()

    with pytest.raises(
        LauncherError, match=r"the driver failed, and has stopped its workers: KeyError: 'odd'"
    ) as raised:
        make_fit(train, Cluster(KeyError("odd"))).run(spec)
    assert ended.is_set()
    assert shut_down.is_set() is by_ray
    assert rule_for(raised.value).retry is Retry.NEVER
    assert box.get(answer_key(1)) is False  # Ray does not restart the workers either


class EndedThread:
    """A thread that has ended before the driver could check anything."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> None:
        self.start = lambda: target(*args)

    def is_alive(self) -> bool:
        return False


def timed_out() -> AttemptResult:
    """The controller has reported a failure, and the driver, which was suspended, has not answered."""
    raise ControllerError(HandedBack("the driver continues with another fit()"))


def test_a_failure_during_the_suspension_of_the_driver_is_raised(
    make_fit: StartFit, box: Mailbox, spec: AttemptSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = make_fit(timed_out)
    box.put(failure_key(1), {0: BROKEN})
    monkeypatch.setattr(module.threading, "Thread", EndedThread)
    with pytest.raises(DataError):
        fit.run(spec)


def test_workers_that_were_not_restarted_during_the_suspension_of_the_driver_are_counted_again(
    make_fit: StartFit, box: Mailbox, spec: AttemptSpec
) -> None:
    answered: list[Exception] = []

    def train() -> AttemptResult:
        box.put(failure_key(1), {0: BROKEN})
        until(lambda: answered)
        return timed_out()

    def on_failure(error: Exception) -> AttemptSpec:
        answered.append(error)
        return spec

    with pytest.raises(NotPlaced, match="the driver was suspended"):
        make_fit(train, on_failure=on_failure).run(spec)

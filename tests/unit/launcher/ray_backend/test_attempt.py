"""What a driver looks after while the workers train; no cluster is needed for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from ray.train.v2.api.exceptions import ControllerError

from launcher.config import load as configs
from launcher.ray_backend.attempt import Fit, Why
from launcher.ray_backend.failures import NotPlaced
from launcher.ray_backend.handover import HandedBack, failed
from launcher.recovery.history import policy_of
from launcher.recovery.notify import Notifier
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat
from resnet_dist.errors import DataError


class Cluster:
    """A cluster whose node will go away, and that answers only at times."""

    def __init__(self, *answers: Exception | set[str]) -> None:
        self.answers = list(answers)
        self.leaving: set[str] = set()

    def heads(self) -> set[str]:
        return {"head"}

    def draining(self) -> set[str]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_driver_looks_again_after_the_cluster_did_not_answer(
    write_config: Callable[..., Path], small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("launcher.ray_backend.attempt.time.monotonic", lambda: float(next(seconds)))
    config = configs.load(write_config())
    number = small_run.begin_attempt({"place": "ray"})
    small_run.logs(number).heartbeats.mkdir()
    beat = Beat(rank=0, host="a", pid=1, tick=1, phase="step", step=1, age_s=0.0, node_id="n1")
    heartbeats.write(small_run.logs(number), beat)
    cluster: Any = Cluster(ray.exceptions.RayError("no answer"), OSError(5, "I/O error"), {"n1"})
    fit = Fit(config, small_run, 1, cluster, policy_of(config), (), lambda error: None)
    fit._number = number
    duties = fit._duties(Notifier(config.notify, small_run))
    reasons = []
    for _ in range(6):
        next(duties)
        reasons.append(fit.why)
    assert reasons[0] is None
    assert reasons[-1] is Why.PREEMPTED
    assert small_run.logs(number).stop_request.exists()
    assert cluster.leaving == {"n1"}


@pytest.mark.parametrize(("draining", "why"), [("head", Why.PREEMPTED), ("n1", Why.PREEMPTED), ("other", None)])
def test_the_drain_of_the_head_counts_though_no_worker_is_there(
    draining: str, why: Why | None, write_config: Callable[..., Path], small_run: RunDirectory
) -> None:
    config = configs.load(write_config())
    number = small_run.begin_attempt({"place": "ray"})
    small_run.logs(number).heartbeats.mkdir()
    beat = Beat(rank=0, host="a", pid=1, tick=1, phase="step", step=1, age_s=0.0, node_id="n1")
    heartbeats.write(small_run.logs(number), beat)
    cluster: Any = Cluster({draining})
    fit = Fit(config, small_run, 1, cluster, policy_of(config), (), lambda error: None)
    fit._number = number
    fit._look_for_drains()
    assert fit.why is why
    assert cluster.leaving == ({draining} if why else set())


class Box:
    """What the controller has left, by name."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def get(self, key: str) -> Any:
        return self.values.get(key)


@pytest.fixture
def fit(write_config: Callable[..., Path], small_run: RunDirectory) -> Fit:
    """A `fit()` that has ended because its controller waited in vain for the driver."""
    config = configs.load(write_config())
    cluster: Any = Cluster()
    fit = Fit(config, small_run, 1, cluster, policy_of(config), (), lambda error: None)
    fit._number = small_run.begin_attempt({"place": "ray"})
    fit._answer["error"] = ControllerError(HandedBack("the driver goes on from here itself"))
    return fit


def test_a_failure_that_the_driver_slept_through_is_told_as_what_it_was(fit: Fit) -> None:
    box: Any = Box(**{failed(1): {0: DataError("a.jpg", "broken")}})
    assert isinstance(fit._last_error(box), DataError)


def test_workers_that_were_not_started_again_as_the_driver_slept_are_counted_again(fit: Fit) -> None:
    fit._num_failures = 1
    box: Any = Box(**{failed(1): {0: DataError("a.jpg", "broken")}})
    assert isinstance(fit._last_error(box), NotPlaced)

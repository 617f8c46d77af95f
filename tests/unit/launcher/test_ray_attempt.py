"""What a driver looks after while the workers train; no cluster is needed for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions

from launcher import config as configs
from launcher import heartbeats
from launcher.attempts import policy_of
from launcher.heartbeats import Beat
from launcher.notify import Notifier
from launcher.ray_attempt import Fit, Why
from launcher.run_directory import RunDirectory
from launcher.worker import stop_file


class Cluster:
    """A cluster whose node will go away, and that answers only at times."""

    def __init__(self, *answers: Exception | set[str]) -> None:
        self.answers = list(answers)
        self.leaving: set[str] = set()

    def draining(self) -> set[str]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_driver_looks_again_after_the_cluster_did_not_answer(
    write_config: Callable[..., Path], small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("launcher.ray_attempt.time.monotonic", lambda: float(next(seconds)))
    config = configs.load(write_config())
    number = small_run.begin_attempt({"place": "ray"})
    heartbeats.folder(small_run.logs(number)).mkdir()
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
    assert stop_file(small_run, number).exists()
    assert cluster.leaving == {"n1"}

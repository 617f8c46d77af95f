from __future__ import annotations

from typing import Any, cast

import pytest

from launcher.errors import WorkerLost
from launcher.signals import StopSignals
from launcher.study.plan import Plan
from launcher.study.ray_pool import RayPool, in_a_task
from launcher.study.rounds import Job
from launcher.study.training import Ended, Moment, Order
from tests.unit.launcher.study.conftest import MakePlan


class FakeTasks:
    """Ends one task at each question, the last one first."""

    def __init__(self) -> None:
        self.started: list[Order] = []
        self.waits = 0

    def start(self, argument: Order) -> None:
        self.started.append(argument)

    def ended(self, timeout_s: float) -> list[tuple[Order, Ended | Exception]]:
        self.waits += 1
        if self.waits == 1:
            return []
        order = self.started.pop()
        return [(order, WorkerLost("n1", 0, "gone") if order.config.seed == 1 else Ended(0))]


class FakeStop(StopSignals):
    @property
    def stopped(self) -> bool:
        return True


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan("seeds: [0, 1, 2]")


def test_all_jobs_become_tasks_and_a_lost_worker_is_a_failed_run(plan: Plan) -> None:
    pool = RayPool(cast(Any, FakeTasks()), StopSignals())
    answers = list(pool.run([Job(run) for run in plan.runs], lambda job: Order(job.run.config)))
    assert [(job.run.seed, answer) for job, answer in answers if isinstance(answer, Moment)] == [
        (seed, Moment(0, None, None)) for seed in (0, 1, 2)
    ]
    ends = [(job.run.seed, answer) for job, answer in answers if isinstance(answer, Ended)]
    assert ends == [(2, Ended(0)), (1, Ended(76, "worker 0 on n1: gone")), (0, Ended(0))]


def test_a_signal_becomes_a_stop_request_of_each_running_run(plan: Plan) -> None:
    running, ended, waiting = (run.directory for run in plan.runs)
    for run in (running, ended):
        run.create()
        run.begin_attempt()
    ended.end_attempt(1, 0, "", 8)
    plan.file.folder.mkdir(parents=True, exist_ok=True)
    list(
        RayPool(cast(Any, FakeTasks()), FakeStop()).run(
            [Job(run) for run in plan.runs], lambda job: Order(job.run.config)
        )
    )
    assert running.logs(1).stop_request.exists()
    assert not ended.logs(1).stop_request.exists()
    assert not waiting.path.exists()
    assert in_a_task(Order(plan.runs[2].config)) == Ended(75)  # a task that begins now
    assert not waiting.path.exists()

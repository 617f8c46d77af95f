from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from launcher.signals import StopSignals
from launcher.study import session
from launcher.study.rounds import Job
from launcher.study.session import carry_out
from launcher.study.training import Answer, Ended, Order
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states


class Listener:
    """Notes the orders, and trains nothing."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def run(self, jobs: Sequence[Job], make_order: Callable[[Job], Order]) -> Iterator[tuple[Job, Answer | None]]:
        for job in jobs:
            self.orders.append(make_order(job))
            yield job, Ended(65, "it broke")


def test_all_runs_share_one_folder_of_tables(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {data.resolution: [16, 32]}\nseeds: [0, 1]")
    assert len({run.directory.shared_index for run in plan.runs}) == 1


@pytest.mark.parametrize(
    ("section", "only", "expected"),
    [
        ("", slice(0, 4), "4 of 4 runs finished already: nothing to train"),
        ("", slice(0, 1), "1 of 1 run finished already: nothing to train"),
        ("tune: {keys: [batch.size]}", slice(0, 4), "3 of 3 runs finished already: nothing to train"),
        (
            "tune: {keys: [batch.size]}", slice(3, 4),
            "0 of 1 run finished already, and the tuning does not let the others go on now: nothing to train",
        ),
    ],
)  # fmt: skip
def test_a_study_that_is_finished_says_so(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    section: str, only: slice, expected: str,
) -> None:  # fmt: skip
    plan = make_plan(f"grid: {{batch.size: [8, 16]}}\nseeds: [0, 1]\n{section}")
    given = {"-8_": finished(top1=0.5), "-16_seed-0": finished(top1=0.4)}
    given |= {} if section else {"-16_seed-1": finished(top1=0.4)}
    monkeypatch.setattr(session, "read_states", lambda plan: states(plan, given))
    runner = Listener()
    carry_out(plan, plan.runs[only], runner, StopSignals(), 1)
    assert runner.orders == []
    assert capsys.readouterr().out == f"{expected}\n"

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from launcher.signals import StopSignals
from launcher.study.rounds import Job
from launcher.study.session import carry_out
from launcher.study.training import Answer, Ended, Order
from tests.unit.launcher.study.conftest import MakePlan


class Listener:
    """Notes the orders, and trains nothing."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def run(self, jobs: Sequence[Job], make_order: Callable[[Job], Order]) -> Iterator[tuple[Job, Answer | None]]:
        for job in jobs:
            self.orders.append(make_order(job))
            yield job, Ended(65, "it broke")


def test_runs_on_the_same_images_share_their_tables_whatever_their_subset_is_drawn_with(make_plan: MakePlan) -> None:
    plan = make_plan("overrides: {data.subset: 0.5}\ngrid: {data.resolution: [16, 32]}\nseeds: [0, 1]")
    index = plan.runs[0].directory.index
    index.mkdir(parents=True)
    for name in ("train.npz", "val.npz"):
        (index / name).touch()
    runner = Listener()
    carry_out(plan, plan.runs, runner, StopSignals(), 1)
    assert [order.index for order in runner.orders] == [None, index, None, None]

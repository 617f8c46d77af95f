"""What a training process tells of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_dist.telemetry import liveness as module
from resnet_dist.telemetry.liveness import Liveness, _DeviceTimer


def test_phases_and_items_are_beats() -> None:
    liveness = Liveness()
    assert (liveness.phase, liveness.step) == ("start", 0)
    liveness.enter("evaluate", 7)
    assert list(liveness.beating([1, 2])) == [1, 2]
    assert (liveness.phase, liveness.step, liveness.count) == ("evaluate", 7, 3)


def test_own_time_ends_at_the_last_gradient_and_leaves_out_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = 100.0, 5.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    model, liveness = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), Liveness()
    liveness.watch(model, torch.device("cpu"), lambda: waited)
    liveness.enter("step", 1)
    assert liveness.local_step_time_s() == 0.0
    now, waited = 103.0, 6.0  # three seconds, one of them for others
    assert not liveness.gradients_are_ready
    model(torch.ones(1, 2)).sum().backward()
    assert liveness.gradients_are_ready
    now = 200.0  # what comes after is the gradients' exchange
    assert liveness.local_step_time_s() == 2.0
    liveness.enter("step", 2)
    assert (liveness.local_step_time_s(), liveness.gradients_are_ready) == (0.0, False)


class Mark:
    """A mark in a GPU's stream of work, which has passed it."""

    now_ms = 0.0

    def __init__(self) -> None:
        self.at_ms = Mark.now_ms

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Mark) -> float:
        return later.at_ms - self.at_ms


def test_a_step_that_is_replayed_as_a_graph_has_no_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures[0])
    monkeypatch.setattr(_DeviceTimer, "_event", staticmethod(Mark))
    time = _DeviceTimer()
    time.begin()
    Mark.now_ms += 20
    time.end()
    captures[0] = True
    Mark.now_ms += 500
    time.end()  # the hook is called once more while the graph is captured
    captures[0] = False
    time.begin()
    assert time.seconds() == 0.02
    time.begin()  # no hook is called while it is replayed
    assert time.seconds() == 0.0

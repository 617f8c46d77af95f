"""What a training process tells of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_dist import pulse as pulses
from resnet_dist.pulse import Pulse


def test_phases_and_items_are_beats() -> None:
    pulse = Pulse()
    assert (pulse.phase, pulse.step) == ("start", 0)
    pulse.enter("evaluate", 7)
    assert list(pulse.beating([1, 2])) == [1, 2]
    assert (pulse.phase, pulse.step, pulse.count) == ("evaluate", 7, 3)


def test_own_time_ends_at_the_last_gradient_and_leaves_out_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = 100.0, 5.0
    monkeypatch.setattr(pulses.time, "perf_counter", lambda: now)
    model, pulse = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), Pulse()
    pulse.watch(model, torch.device("cpu"), lambda: waited)
    pulse.enter("step", 1)
    assert pulse.own_s() == 0.0
    now, waited = 103.0, 6.0  # three seconds, one of them for others
    assert not pulse.gradients_are_ready
    model(torch.ones(1, 2)).sum().backward()
    assert pulse.gradients_are_ready
    now = 200.0  # what comes after is the gradients' exchange
    assert pulse.own_s() == 2.0
    pulse.enter("step", 2)
    assert (pulse.own_s(), pulse.gradients_are_ready) == (0.0, False)

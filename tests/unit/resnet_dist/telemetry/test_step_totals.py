from __future__ import annotations

import pytest
import torch

from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.telemetry.step_totals import StepExchange, StepSums

CPU = torch.device("cpu")


def sums(ratios: tuple[float, ...] = ()) -> StepSums:
    one, two, four = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    return StepSums(one, two, four, trust_ratios=torch.tensor(ratios, dtype=torch.float64) if ratios else None)


@pytest.mark.parametrize("ratios", [(), (0.25, 0.5)])
@pytest.mark.parametrize("tallies", [(), (3, 2**32 - 1, 2**32 - 2), (3, 0, 2, 1, 0, 0)])
def test_totals_are_read_as_they_were_given(tallies: tuple[int, ...], ratios: tuple[float, ...]) -> None:
    exchange = StepExchange(RunningStatistics(torch.nn.Identity()), CPU, batch_size=8, num_tallies=len(tallies))
    for step in (1, 2):
        found = exchange.finish(step, sums(ratios), False, 0.5, checksum=2**40 + 1, tallies=tallies).read()
        assert (found.step, found.loss, found.top1, found.gradient_norm) == (step, 1 / 8, 2 / 8, 2.0)
        assert (found.checksum, found.tallies) == (2**40 + 1, tallies)
        assert (found.local_step_times_s, found.trust_ratios) == ((0.5,), ratios)


def test_tallies_of_a_step_are_not_those_of_the_step_before() -> None:
    exchange = StepExchange(RunningStatistics(torch.nn.Identity()), CPU, batch_size=8, num_tallies=3)
    assert exchange.finish(1, sums(), tallies=(1, 2, 3)).read().tallies == (1, 2, 3)
    assert exchange.finish(2, sums(), tallies=(0, 0, 4)).read().tallies == (0, 0, 4)

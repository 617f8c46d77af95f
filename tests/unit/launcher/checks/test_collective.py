"""The sum that the doctor's all-reduce must come to; tests/distributed/test_doctor.py has real processes do it."""

from __future__ import annotations

import torch

from launcher.checks.collective import contribution, expected

CPU = torch.device("cpu")


def test_the_expected_sum_is_the_sum_of_all_contributions() -> None:
    for world_size in (1, 2, 7, 16):
        summed = sum((contribution(rank, 1003, CPU) for rank in range(world_size)), torch.zeros(1003))
        assert torch.equal(summed, expected(world_size, 1003, CPU))

"""The all-reduce of the doctor, between real processes on gloo."""

from __future__ import annotations

import torch

from launcher.checks.collective import contribution, expected, reduce_here
from launcher.checks.network import unused_port

CPU = torch.device("cpu")


def test_the_expected_sum_is_the_sum_of_all_contributions() -> None:
    for world_size in (1, 2, 7, 16):
        summed = sum((contribution(rank, 1003, CPU) for rank in range(world_size)), torch.zeros(1003))
        assert torch.equal(summed, expected(world_size, 1003, CPU))


def reduce(processes: int, world_size: int, seconds: float) -> dict[str, object]:
    return reduce_here(
        first_rank=0, processes=processes, world_size=world_size, address="127.0.0.1", port=unused_port(), gpus=False,
        num_bytes=2**16, seconds=seconds,
    )  # fmt: skip


def test_two_processes_reduce_right_and_tell_their_speed() -> None:
    answer = reduce(processes=2, world_size=2, seconds=60)
    assert (answer["problems"], answer["wrong"]) == ([], 0)
    assert isinstance(answer["bus_bytes_per_s"], float)
    assert answer["bus_bytes_per_s"] > 0


def test_a_process_whose_partner_never_comes_says_so() -> None:
    answer = reduce(processes=1, world_size=2, seconds=1)
    assert answer["problems"] != []

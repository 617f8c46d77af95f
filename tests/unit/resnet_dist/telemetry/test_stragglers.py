"""Which worker slows down the others."""

from __future__ import annotations

import random

import pytest

from resnet_dist.telemetry.stragglers import Stragglers


def named(steps: list[list[float]]) -> list[tuple[int, int]]:
    """(step, rank) of everyone who is named."""
    stragglers = Stragglers()
    return [(number, found.rank) for number, times in enumerate(steps, start=1) for found in stragglers.add(times)]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_a_worker_three_times_slower_is_named_once_and_soon(world_size: int) -> None:
    random.seed(0)
    steps = [[random.uniform(0.09, 0.11) * (3 if rank == 1 else 1) for rank in range(world_size)] for _ in range(200)]
    [(step, rank)] = named(steps)
    assert rank == 1
    assert step <= 50


def test_a_worker_that_becomes_slow_is_named_within_fifty_steps() -> None:
    [(step, rank)] = named([[0.1, 0.1, 0.1]] * 1000 + [[0.1, 0.1, 0.3]] * 100)
    assert (step <= 1050, rank) == (True, 2)


def test_a_worker_that_caught_up_and_fell_back_is_named_again() -> None:
    slow, equal = [[0.1, 0.4]] * 50, [[0.1, 0.1]] * 50
    assert [rank for _, rank in named(slow + equal + slow)] == [1, 1]


def test_a_few_slow_steps_make_no_straggler() -> None:
    assert named([[0.1, 5.0 if step % 3 == 0 else 0.1] for step in range(100)]) == []


def test_what_nobody_would_notice_makes_no_straggler() -> None:
    assert named([[0.001, 0.003]] * 100) == []


def test_one_worker_alone_and_unknown_times_name_nobody() -> None:
    assert named([[3.0]] * 100) == []
    assert named([[0.0, 3.0]] * 100) == []

"""LARS and LAMB on shards of parameters against those on whole ones, in float64. Threads play the workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnet_dist.engines.partition import (
    AllReduce,
    Partition,
    PartitionError,
    PartitionTable,
    check_covered,
    partition_table,
)
from resnet_dist.optim import Lamb, Lars, LayerwiseOptimizer, squared_norms


def layout(numels: list[int], world_size: int, alignment: int = 2) -> tuple[list[int], int]:
    """Offsets without gaps, and the partition's size: padded at the end as DeepSpeed does."""
    offsets = [0, *itertools.accumulate(numels)][:-1]
    unit = alignment * world_size
    return offsets, -(-sum(numels) // unit) * unit // world_size


def tables_of(numels: list[int], world_size: int, alignment: int = 2) -> list[PartitionTable]:
    offsets, size = layout(numels, world_size, alignment)
    return [partition_table(numels, offsets, size, rank) for rank in range(world_size)]


def flats_of(tensors: list[Tensor], tables: list[PartitionTable]) -> list[Tensor]:
    """Every worker's partition of `tensors`, zeros where it is padded."""
    flats = []
    for table in tables:
        flat = torch.zeros(table.partition_size, dtype=torch.float64)
        for shard in table.shards:
            flat[shard.in_partition] = tensors[shard.parameter].flatten()[shard.in_parameter]
        flats.append(flat)
    return flats


def whole_of(flats: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The tensors that the workers' partitions hold, concatenated, without a table."""
    values = torch.cat(flats)[: sum(tensor.numel() for tensor in like)].split([tensor.numel() for tensor in like])
    return [value.view(tensor.shape) for value, tensor in zip(values, like, strict=True)]


class Workers:
    """Workers as threads, with an all-reduce among them."""

    def __init__(self, world_size: int) -> None:
        self._barrier = Barrier(world_size, timeout=30)
        self._given = [torch.empty(0)] * world_size

    def all_reduce(self, rank: int) -> AllReduce:
        """That of worker `rank`."""

        def of_rank(values: Tensor) -> None:
            self._given[rank] = values.clone()
            self._barrier.wait()
            values.copy_(torch.stack(self._given).sum(0))
            self._barrier.wait()

        return of_rank

    def run(self, work: Callable[[int], None]) -> None:
        """Do `work` on every rank at once."""
        with ThreadPoolExecutor(len(self._given)) as pool:
            list(pool.map(work, range(len(self._given))))


# --- the table

numels_and_worlds = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 4)
)


@given(numels_and_worlds)
@settings(deadline=None)
def test_every_element_is_in_exactly_one_partition(case: tuple[list[int], int, int]) -> None:
    numels, world_size, alignment = case
    tables = tables_of(numels, world_size, alignment)
    check_covered(tables)
    held = [(shard.parameter, i) for t in tables for shard in t.shards for i in range(1000)[shard.in_parameter]]
    assert sorted(held) == [(number, i) for number, numel in enumerate(numels) for i in range(numel)]


@given(numels_and_worlds)
@settings(deadline=None)
def test_cut_tensors_come_back_whole(case: tuple[list[int], int, int]) -> None:
    numels, world_size, alignment = case
    tensors = [torch.randn(numel, dtype=torch.float64) for numel in numels]
    flats = flats_of(tensors, tables_of(numels, world_size, alignment))
    assert all(torch.equal(a, b) for a, b in zip(whole_of(flats, tensors), tensors, strict=True))


def test_shards_of_a_small_layout() -> None:
    # three parameters of 5, 3 and 1 elements, in partitions of 4: 0000 | 0111 | 2...
    shards = [[(p.parameter, p.in_partition, p.in_parameter) for p in t.shards] for t in tables_of([5, 3, 1], 3, 1)]
    assert layout([5, 3, 1], 3, 1)[1] == 3
    assert shards == [
        [(0, slice(0, 3), slice(0, 3))],
        [(0, slice(0, 2), slice(3, 5)), (1, slice(2, 3), slice(0, 1))],
        [(1, slice(0, 2), slice(1, 3)), (2, slice(2, 3), slice(0, 1))],
    ]


def test_gaps_between_parameters_belong_to_no_shard() -> None:
    tables = [partition_table([3, 2], [0, 4], 3, rank) for rank in range(2)]
    check_covered(tables)
    assert [(p.parameter, p.in_partition) for p in tables[1].shards] == [(1, slice(1, 3))]


def test_a_worker_may_hold_nothing_but_padding() -> None:
    assert tables_of([1], 3)[1].shards == ()
    check_covered(tables_of([1], 3))


# --- what the check finds


def test_a_missing_worker_is_found() -> None:
    with pytest.raises(PartitionError, match="the parameters end at element 9, beyond the 1 partitions of 3 elements"):
        check_covered(tables_of([5, 3, 1], 3, 1)[:1])


def test_parameters_that_overlap_are_found() -> None:
    with pytest.raises(PartitionError, match="parameter 1 begins at element 2, but the one before ends at 3"):
        check_covered([partition_table([3, 2], [0, 2], 6, 0)])


def test_workers_with_different_layouts_are_found() -> None:
    tables = [partition_table([3, 5], [0, 3], 4, 0), partition_table([5, 3], [0, 5], 4, 1)]
    with pytest.raises(PartitionError, match="do not agree on the order and sizes of the parameters"):
        check_covered(tables)


# --- norms and LARS


@given(numels_and_worlds)
@settings(deadline=None)
def test_norms_added_up_over_workers_are_those_of_whole_tensors(case: tuple[list[int], int, int]) -> None:
    numels, world_size, alignment = case
    generator = torch.Generator().manual_seed(sum(numels))
    weights, gradients = (
        [torch.randn(numel, dtype=torch.float64, generator=generator) for numel in numels] for _ in range(2)
    )
    tables = tables_of(numels, world_size, alignment)
    total = torch.zeros(2, len(numels), dtype=torch.float64)
    flats = zip(tables, flats_of(weights, tables), flats_of(gradients, tables), strict=True)
    for table, weight, gradient in flats:
        Partition(table, total.add_).squared_norms([weight], [gradient])
    expected = torch.stack([squared_norms(weights), squared_norms(gradients)])
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)


SHAPES = [[(4, 3, 3, 3), (5,), (7, 4), (1,)], [(5,), (6,)]]  # a group that decays, and one that does not


def tensors(seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, dtype=torch.float64, generator=generator) for shape in group] for group in SHAPES]


def groups(parameters: list[list[Tensor]]) -> list[dict[str, Any]]:
    decaying, others = parameters
    return [
        {"params": decaying, "decay": True},
        {"params": others, "decay": False, "weight_decay": 0.0},
    ]


def lars(parameters: list[list[Tensor]], lr_in_momentum: bool, nesterov: bool = False) -> Lars:
    settings: dict[str, float] = {"momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1, "epsilon": 1e-9}
    return Lars(groups(parameters), lr_in_momentum=lr_in_momentum, nesterov=nesterov, **settings)


OPTIMIZERS: dict[str, Callable[[list[list[Tensor]]], LayerwiseOptimizer]] = {
    "lars, lr inside": lambda parameters: lars(parameters, True),
    "lars, lr outside": lambda parameters: lars(parameters, False),
    "lars, nesterov, lr inside": lambda parameters: lars(parameters, True, nesterov=True),
    "lars, nesterov, lr outside": lambda parameters: lars(parameters, False, nesterov=True),
    "lamb": lambda parameters: Lamb(groups(parameters), weight_decay=0.01),
}


def set_step(optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]], learning_rate: float) -> None:
    for group, of_group in zip(optimizer.param_groups, gradients, strict=True):
        group["lr"] = learning_rate
        for parameter, gradient in zip(group["params"], of_group, strict=True):
            parameter.grad = gradient.clone()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_an_optimizer_on_partitions_is_that_on_whole_parameters(world_size: int, name: str) -> None:
    whole = tensors(0)
    tables = [tables_of([tensor.numel() for tensor in group], world_size) for group in whole]
    flats = [flats_of(group, of_group) for group, of_group in zip(whole, tables, strict=True)]
    workers = Workers(world_size)
    ratios: list[Tensor] = [torch.empty(0)] * world_size

    def train(rank: int) -> None:
        own = [[of_group[rank]] for of_group in flats]
        optimizer = OPTIMIZERS[name](own)
        for [flat], of_group in zip(own, tables, strict=True):
            optimizer.bind(flat, Partition(of_group[rank], workers.all_reduce(rank)))
        for step in range(4):
            gradients = [flats_of(group, table) for group, table in zip(tensors(step + 1), tables, strict=True)]
            set_step(optimizer, [[of_group[rank]] for of_group in gradients], 0.1 * (step + 1))
            optimizer.step()
        ratios[rank] = optimizer.last_trust_ratios()

    workers.run(train)
    oracle = OPTIMIZERS[name](whole)
    for step in range(4):
        set_step(oracle, tensors(step + 1), 0.1 * (step + 1))
        oracle.step()

    for group, of_group in zip(whole, flats, strict=True):
        for ours, theirs in zip(whole_of(of_group, group), group, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ratios, [oracle.last_trust_ratios()] * world_size, rtol=1e-12, atol=0)
        padding = torch.cat(of_group)[sum(tensor.numel() for tensor in group) :]
        assert torch.equal(padding, torch.zeros_like(padding))


def test_only_groups_that_decay_exchange_anything() -> None:
    calls: list[tuple[int, ...]] = []
    flats = [[torch.ones(6, dtype=torch.float64)], [torch.ones(4, dtype=torch.float64)]]
    optimizer = lars(flats, False)
    for [flat], numels in zip(flats, ([4, 2], [3, 1]), strict=True):
        [table] = tables_of(numels, 1)
        optimizer.bind(flat, Partition(table, lambda values: calls.append(tuple(values.shape))))
    set_step(optimizer, [[torch.ones(6, dtype=torch.float64)], [torch.ones(4, dtype=torch.float64)]], 0.1)
    optimizer.step()
    assert calls == [(2, 2)]


def test_groups_may_be_stepped_one_by_one() -> None:
    """As DeepSpeed does it."""

    def stepped(one_by_one: bool) -> list[Tensor]:
        flats = [[torch.arange(1, 7, dtype=torch.float64)], [torch.arange(1, 5, dtype=torch.float64)]]
        optimizer = lars(flats, True)
        for [flat], numels in zip(flats, ([4, 2], [3, 1]), strict=True):
            optimizer.bind(flat, Partition(tables_of(numels, 1)[0], lambda values: None))
        set_step(optimizer, [[torch.ones(6, dtype=torch.float64)], [torch.ones(4, dtype=torch.float64)]], 0.1)
        every = optimizer.param_groups
        for some in [[group] for group in every] if one_by_one else [every]:
            optimizer.param_groups = some
            optimizer.step()
        return [flat for [flat] in flats]

    assert all(torch.equal(a, b) for a, b in zip(stepped(True), stepped(False), strict=True))


def test_norms_of_a_whole_partition_would_be_another_optimizer() -> None:
    """The tests above would detect this error."""
    whole, gradients = tensors(0), tensors(1)
    flat, flat_gradients = (
        [[torch.cat([t.flatten() for t in group])] for group in all_] for all_ in (whole, gradients)
    )
    for parameters, of_step in ((whole, gradients), (flat, flat_gradients)):
        optimizer = lars(parameters, False)
        set_step(optimizer, of_step, 1.0)
        optimizer.step()
    assert (torch.cat([t.flatten() for t in whole[0]]) - flat[0][0]).abs().max() > 1e-2

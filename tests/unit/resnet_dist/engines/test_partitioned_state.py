"""Optimizer state sharded over workers, which one process plays, and joined again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_dist.engines.partition import partition_table
from resnet_dist.engines.partitioned_state import FlatGroup, check_states, gather_state, scatter_state
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.errors import RecipeError

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.arange(12.0).view(3, 4))
        self.second = nn.Parameter(torch.arange(5.0))
        self.third = nn.Parameter(torch.tensor(2.0))

    def give_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


class Worker:
    """One of `world_size` workers that hold `net` in two groups: first and third, and second."""

    def __init__(self, net: Net, make: MakeOptimizer, rank: int, world_size: int) -> None:
        self.groups = []
        for names in (("first", "third"), ("second",)):
            parameters = tuple(getattr(net, name).detach() for name in names)
            numels = [parameter.numel() for parameter in parameters]
            offsets = [0, numels[0]][: len(numels)]
            size = -(-sum(numels) // world_size)
            table = partition_table(numels, offsets, size, rank)
            flat = torch.zeros(size)
            for shard in table.shards:
                flat[shard.in_partition] = parameters[shard.parameter].flatten()[shard.in_parameter]
            self.groups.append(FlatGroup(names, parameters, flat, table))
        self.optimizer = make([{"params": [group.flat]} for group in self.groups])

    def step(self, net: Net) -> None:
        for group in self.groups:
            group.flat.grad = torch.zeros_like(group.flat)
            for shard in group.table.shards:
                gradient = getattr(net, group.names[shard.parameter]).grad
                group.flat.grad[shard.in_partition] = gradient.flatten()[shard.in_parameter]
        self.optimizer.step()


def gathered(workers: Sequence[Worker]) -> dict[str, dict[str, Tensor]]:
    """What worker 0 gathers; the others' parts are found where worker 0's lies in its own optimizer."""

    def all_gather(part: Tensor) -> Tensor:
        for number, group in enumerate(workers[0].groups):
            for key, value in workers[0].optimizer.state[group.flat].items():
                if value is part or (isinstance(value, Tensor) and value.data_ptr() == part.data_ptr()):
                    return torch.cat([w.optimizer.state[w.groups[number].flat][key] for w in workers])
        raise AssertionError("a tensor that is no state")

    return gather_state(workers[0].groups, workers[0].optimizer, all_gather)


def trained(make: MakeOptimizer, world_size: int) -> tuple[Net, torch.optim.Optimizer, list[Worker]]:
    """Three steps on whole parameters, and the same on partitions."""
    net = Net()
    workers = [Worker(net, make, rank, world_size) for rank in range(world_size)]
    whole = make([{"params": [net.first, net.third]}, {"params": [net.second]}])
    for seed in range(3):
        net.give_gradients(seed)
        for worker in workers:
            worker.step(net)
        whole.step()
    return net, whole, workers


@pytest.mark.parametrize("make", [sgd, plain_sgd, adam])
@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_the_gathered_state_is_that_of_whole_parameters(make: MakeOptimizer, world_size: int) -> None:
    net, whole, workers = trained(make, world_size)
    torch.testing.assert_close(gathered(workers), state_by_name(net, whole), rtol=0, atol=0)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (1, 20)])
def test_a_state_goes_on_at_another_number_of_workers(make: MakeOptimizer, before: int, after: int) -> None:
    net, whole, workers = trained(make, before)
    saved = gathered(workers)
    resumed = [Worker(net, make, rank, after) for rank in range(after)]
    for worker in resumed:
        scatter_state(worker.groups, worker.optimizer, saved)
    net.give_gradients(10)
    whole.step()
    for worker in resumed:
        worker.step(net)
    torch.testing.assert_close(gathered(resumed), state_by_name(net, whole), rtol=0, atol=0)


def test_a_state_of_partitions_goes_on_with_whole_parameters() -> None:
    net, whole, workers = trained(adam, 3)
    other = Net()
    optimizer = adam(other.parameters())
    load_state_by_name(other, optimizer, gathered(workers))
    torch.testing.assert_close(state_by_name(other, optimizer), state_by_name(net, whole), rtol=0, atol=0)


@given(st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_scattered_and_gathered_again_nothing_has_changed(before: int, after: int) -> None:
    _, _, workers = trained(sgd, before)
    saved = gathered(workers)
    others = [Worker(Net(), sgd, rank, after) for rank in range(after)]
    for worker in others:
        scatter_state(worker.groups, worker.optimizer, saved)
    torch.testing.assert_close(gathered(others), saved, rtol=0, atol=0)


def test_what_is_gathered_is_a_copy() -> None:
    _, _, workers = trained(adam, 1)
    saved = gathered(workers)
    for entries in saved.values():
        for value in entries.values():
            value.zero_()
    assert all(gathered(workers)["first"][key].abs().min() > 0 for key in ("exp_avg", "exp_avg_sq", "step"))


def test_no_steps_no_state() -> None:
    worker = Worker(Net(), sgd, 0, 1)
    assert gathered([worker]) == {}
    scatter_state(worker.groups, worker.optimizer, {})
    assert not worker.optimizer.state


def test_a_state_of_another_shape_is_refused_by_the_optimizers_name() -> None:
    worker = Worker(Net(), sgd, 0, 1)
    worker.optimizer.state[worker.groups[0].flat]["rows"] = torch.zeros(3)
    message = r"optimizer.name: SGD keeps rows of shape \(3,\) for 13 elements\. Allowed: with engine zero:"
    with pytest.raises(RecipeError, match=message):
        check_states(worker.groups, worker.optimizer)
    with pytest.raises(RecipeError, match=message):
        gathered([worker])


def fitting() -> dict[str, dict[str, Tensor]]:
    return {name: {"step": torch.tensor(1.0), "m": value.detach()} for name, value in Net().named_parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fourth": {"m": torch.zeros(5)}}, "optimizer state of fourth, which is not a parameter of the model"),
        ({"second": {"m": torch.zeros(6)}}, r"m of second has shape \(6,\), but the parameter has \(5,\)"),
        ({"third": {"step": torch.tensor(1.0)}}, "third has no m, which other parameters of its group have"),
        (
            {"third": {"step": torch.tensor(4.0), "m": torch.zeros(())}},
            "step is 4.0 for third and 1.0 for first: under ZeRO it must be the same for all parameters of a group",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, dict[str, Tensor]], message: str) -> None:
    worker = Worker(Net(), sgd, 0, 2)
    with pytest.raises(ValueError, match=message):
        scatter_state(worker.groups, worker.optimizer, fitting() | change)

"""Converts the state of an optimizer on flat partitions to and from the form that all engines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_dist.engines.partition import PartitionTable
from resnet_dist.engines.protocol import OptimizerPart, OptimizerState
from resnet_dist.engines.state import check_names_and_shapes, counts_on_device, is_count
from resnet_dist.errors import RecipeError

AllGather = Callable[[Tensor], Tensor]  # concatenates the workers' [size] in the order of ranks: [workers × size]


@dataclass(frozen=True)
class FlatGroup:
    """A group of the optimizer: its parameters in the order of the table, and this worker's partition of them."""

    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    flat: Tensor  # [partition_size]: the group's one parameter in the optimizer
    table: PartitionTable

    def states(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return {state name: tensor [partition_size] or 0-d}, live."""
        states = optimizer.state.get(self.flat, {})
        return {key: torch.as_tensor(value).detach() for key, value in states.items() if value is not None}


def check_states(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer) -> None:
    """Raise RecipeError if a state is neither one number per element nor a single number.

    Such an optimizer depends on its parameters' shapes: on a partition it computes something else.
    """
    for group in groups:
        for key, value in group.states(optimizer).items():
            shape = tuple(value.shape)
            if shape not in ((), tuple(group.flat.shape)):
                raise RecipeError(
                    "optimizer.name",
                    f"{type(optimizer).__name__} keeps {key} of shape {shape} for {group.flat.numel()} elements",
                    "with engine zero: an optimizer whose state has the parameter's shape or is one number",
                )


def gather_state(
    groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer, all_gather: AllGather
) -> dict[str, dict[str, Tensor]]:
    """Return {parameter name: {state name: whole tensor on the CPU}}, copies, on every worker. A collective."""
    check_states(groups, optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        for key, tensor in group.states(optimizer).items():
            whole = all_gather(tensor).cpu() if tensor.dim() else tensor.cpu()
            for name, parameter, offset in zip(group.names, group.parameters, group.table.offsets, strict=True):
                own = whole[offset : offset + parameter.numel()].view(parameter.shape) if whole.dim() else whole
                state.setdefault(name, {})[key] = own.clone()
    return state


def own_part(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer) -> OptimizerPart:
    """Return this worker's part of the state: views of its partitions. No collective.

    A single number for a whole parameter belongs to the worker that holds the parameter's first element.
    """
    check_states(groups, optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    shards: dict[str, tuple[int, tuple[int, ...]]] = {}
    for group in groups:
        states = group.states(optimizer)
        for shard in group.table.shards if states else ():
            name, parameter = group.names[shard.parameter], group.parameters[shard.parameter]
            shape, start = tuple(parameter.shape), shard.in_parameter.start
            is_whole = shard.in_parameter == slice(0, parameter.numel())
            if not is_whole:
                shards[name] = (start, shape)
            state[name] = {}
            for key, tensor in states.items():
                if tensor.dim() > 0:
                    part = tensor[shard.in_partition]
                    state[name][key] = part.view(shape) if is_whole else part
                elif start == 0:
                    state[name][key] = tensor
    return OptimizerPart(state, shards)


def scatter_state(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Copy this worker's part of `state` into `optimizer`, to the device of its partition.

    Raises ValueError if a name or shape does not fit, or if the states of a group's parameters do not match.
    """
    check_names_and_shapes(
        {n: p for group in groups for n, p in zip(group.names, group.parameters, strict=True)}, state
    )
    for group in groups:
        keys = {key: None for name in group.names for key in state.get(name, {})}  # a set that keeps its order
        if keys:
            [own] = [one for one in optimizer.param_groups if any(flat is group.flat for flat in one["params"])]
            device = group.flat.device if counts_on_device(own) else None
            optimizer.state[group.flat] = {key: _part(group, key, state, device) for key in keys}


def _part(group: FlatGroup, key: str, state: OptimizerState, device_of_counts: torch.device | None) -> Tensor:
    missing = [name for name in group.names if key not in state.get(name, {})]
    if missing:
        raise ValueError(f"{missing[0]} has no {key}, which other parameters of its group have")
    values = [state[name][key] for name in group.names]
    first = values[0]
    if is_count(key, first, group.parameters[0]):
        for name, value in zip(group.names, values, strict=True):
            if not torch.equal(value, first):
                problem = f"{value.item()} for {name} and {first.item()} for {group.names[0]}"
                raise ValueError(f"{key} is {problem}: under ZeRO it must be the same for all parameters of a group")
        return first.clone() if device_of_counts is None else first.to(device_of_counts, copy=True)
    part = torch.zeros_like(group.flat, dtype=first.dtype, requires_grad=False)
    for shard in group.table.shards:
        part[shard.in_partition] = values[shard.parameter].flatten()[shard.in_parameter].to(part.device)
    return part

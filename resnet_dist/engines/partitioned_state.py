"""The state of an optimizer on flat partitions, from and to the one form that all engines share. Torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_dist.engines.partition import PartitionTable
from resnet_dist.engines.protocol import OptimizerPart, OptimizerState
from resnet_dist.engines.state import is_count
from resnet_dist.errors import RecipeError

AllGather = Callable[[Tensor], Tensor]  # the workers' [size], in the order of ranks, as one [workers × size]


@dataclass(frozen=True)
class FlatGroup:
    """A group of the optimizer: its parameters in the order of the table, and this worker's partition of them."""

    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    flat: Tensor  # [partition_size]: the group's one parameter in the optimizer
    table: PartitionTable


def check_states(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer) -> None:
    """Raise RecipeError where a state is neither one number an element nor one number in all.

    Such an optimizer knows its parameters' shapes: on a partition it computes something else.
    """
    for group in groups:
        for key, value in optimizer.state.get(group.flat, {}).items():
            shape = tuple(getattr(value, "shape", ()))
            if value is not None and shape not in ((), tuple(group.flat.shape)):
                raise RecipeError(
                    "optimizer.name",
                    f"{type(optimizer).__name__} keeps {key} of shape {shape} for {group.flat.numel()} elements",
                    "with engine zero: an optimizer whose state has the parameter's shape or is one number",
                )


def gather_state(
    groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer, all_gather: AllGather
) -> dict[str, dict[str, Tensor]]:
    """{parameter name: {state name: tensor on the CPU}}, whole on every worker, nothing shared. A collective."""
    check_states(groups, optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        for key, value in optimizer.state.get(group.flat, {}).items():
            if value is None:
                continue
            tensor = torch.as_tensor(value).detach()
            whole = all_gather(tensor).cpu() if tensor.dim() else None
            places = zip(group.names, group.parameters, group.table.offsets, strict=True)
            for name, parameter, offset in places:
                own = tensor.cpu() if whole is None else whole[offset : offset + parameter.numel()]
                shaped = own if whole is None else own.view(parameter.shape)
                state.setdefault(name, {})[key] = shaped.clone()
    return state


def own_part(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer) -> OptimizerPart:
    """This worker's part of the state: views of its partitions. No collective.

    One number for a whole parameter is with the worker that holds the parameter's first element.
    """
    check_states(groups, optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    pieces: dict[str, tuple[int, tuple[int, ...]]] = {}
    for group in groups:
        states = {key: value for key, value in optimizer.state.get(group.flat, {}).items() if value is not None}
        for piece in group.table.pieces if states else ():
            name, shape = group.names[piece.parameter], tuple(group.parameters[piece.parameter].shape)
            is_whole = piece.stop - piece.start == group.parameters[piece.parameter].numel()
            if not is_whole:
                pieces[name] = (piece.offset, shape)
            state[name] = {}
            for key, value in states.items():
                tensor = torch.as_tensor(value).detach()
                if tensor.dim() > 0:
                    part = tensor[piece.in_partition]
                    state[name][key] = part.view(shape) if is_whole else part
                elif piece.offset == 0:
                    state[name][key] = tensor
    return OptimizerPart(state, pieces)


def scatter_state(groups: Sequence[FlatGroup], optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put this worker's part of `state` into `optimizer`, on the device of its partition.

    ValueError for a name or shape that does not fit, or parts of a group that do not go together.
    """
    parameters = {name: p for group in groups for name, p in zip(group.names, group.parameters, strict=True)}
    for name, entries in state.items():
        if name not in parameters:
            raise ValueError(f"optimizer state of {name}, which the model does not have")
        for key, value in entries.items():
            shape = tuple(parameters[name].shape)
            if value.dim() and tuple(value.shape) != shape:
                raise ValueError(f"{key} of {name} is {tuple(value.shape)}, the parameter {shape}")
    for group in groups:
        keys = {key: None for name in group.names for key in state.get(name, {})}  # a set that keeps its order
        if keys:
            optimizer.state[group.flat] = {key: _part(group, key, state) for key in keys}


def _part(group: FlatGroup, key: str, state: OptimizerState) -> Tensor:
    missing = [name for name in group.names if key not in state.get(name, {})]
    if missing:
        raise ValueError(f"no {key} of {missing[0]}, which others of its group have")
    values = [state[name][key] for name in group.names]
    first = values[0]
    if is_count(key, first, group.parameters[0]):
        for name, value in zip(group.names, values, strict=True):
            if not torch.equal(value, first):
                problem = f"{value.item()} for {name}, {first.item()} for {group.names[0]}"
                raise ValueError(f"{key} is {problem}: a group that ZeRO keeps in one piece has one")
        return first.clone()
    part = torch.zeros_like(group.flat, dtype=first.dtype, requires_grad=False)
    for piece in group.table.pieces:
        part[piece.in_partition] = values[piece.parameter].flatten()[piece.in_parameter].to(part.device)
    return part

"""Optimizer state by parameter name: the one form in which engines hand it to checkpoints and to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnet_dist.engines.protocol import OptimizerState


def state_by_name(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """{parameter name: {state name: the live tensor, on its device}}; a parameter without state yet is left out.

    A state that is a Python number (a step count of a user's optimizer) becomes a 0-d tensor.
    """
    return {
        name: {
            key: torch.as_tensor(value).detach()
            for key, value in optimizer.state[parameter].items()
            if value is not None
        }
        for name, parameter in module.named_parameters()
        if optimizer.state.get(parameter)
    }


def load_state_by_name(module: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put `state` into `optimizer`, on each parameter's device. ValueError for a name or shape that does not fit."""
    parameters = dict(module.named_parameters())
    for name, entries in state.items():
        if name not in parameters:
            raise ValueError(f"optimizer state of {name}, which the model does not have")
        parameter = parameters[name]
        for key, value in entries.items():
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{key} of {name} is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
        optimizer.state[parameter] = {
            # copied into the parameter's own memory layout, so that a resumed step adds up in the same order
            key: value.clone() if is_count(key, value, parameter) else _in_layout_of(parameter, value)
            for key, value in entries.items()
        }


def is_count(key: str, value: Tensor, parameter: Tensor) -> bool:
    """Whether a state is one number for the whole parameter, not one for each of its elements."""
    # torch's optimizers count steps on the CPU under this name; a 0-d state of a 0-d parameter goes where that is
    return value.dim() == 0 and (key == "step" or parameter.dim() > 0)


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)

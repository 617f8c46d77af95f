"""Optimizer state by parameter name: the form that engines, checkpoints and numbers of workers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.engines.protocol import OptimizerState


def state_by_name(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return {parameter name: {state name: the live tensor, on its device}}, without parameters that have no state yet.

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
    """Copy `state` into `optimizer`, to each parameter's device. Raises ValueError if a name or shape does not fit."""
    parameters = dict(module.named_parameters())
    check_names_and_shapes(parameters, state)
    on_device = {id(p) for group in optimizer.param_groups if counts_on_device(group) for p in group["params"]}
    for name, entries in state.items():
        parameter = parameters[name]
        device = parameter.device if id(parameter) in on_device else None
        optimizer.state[parameter] = {
            # in the parameter's memory layout, so that a resumed step sums in the same order
            key: _copy(value, device) if is_count(key, value, parameter) else _in_layout_of(parameter, value)
            for key, value in entries.items()
        }


def counts_on_device(group: Mapping[str, Any]) -> bool:
    """Whether the optimizer has its count of steps on the device of a group's parameters, by torch's names."""
    return bool(group.get("capturable") or group.get("fused"))


def _copy(value: Tensor, device: torch.device | None) -> Tensor:
    return value.clone() if device is None else value.to(device, copy=True)


def check_names_and_shapes(parameters: Mapping[str, Tensor], state: OptimizerState) -> None:
    """Raise ValueError for a state of an unknown parameter, or whose shape is neither the parameter's nor ()."""
    for name, entries in state.items():
        if name not in parameters:
            raise ValueError(f"optimizer state of {name}, which is not a parameter of the model")
        shape = tuple(parameters[name].shape)
        for key, value in entries.items():
            if value.dim() and tuple(value.shape) != shape:
                raise ValueError(f"{key} of {name} has shape {tuple(value.shape)}, but the parameter has {shape}")


def is_count(key: str, value: Tensor, parameter: Tensor) -> bool:
    """Return whether a state is one number for the whole parameter, not one per element."""
    # torch's optimizers count steps on the CPU under this name; a 0-d state of a 0-d parameter goes to its device
    return value.dim() == 0 and (key == "step" or parameter.dim() > 0)


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)

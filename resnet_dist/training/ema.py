"""An exponential moving average of the weights, used for evaluation only.

    average <- decay * average + (1 - decay) * weights        after every `every_steps` steps

As in timm's ModelEmaV2, the average starts as a copy of the weights, and floating-point buffers (batch norm's running
statistics) are averaged as well. The update is that of torch.optim.swa_utils.get_ema_multi_avg_fn: one
`torch._foreach_lerp_` per dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's parameters and floating-point buffers, on their device, in their dtype and layout.

    Every worker has the same average, since all have the same whole weights after a step. Updates never wait for the
    device.
    """

    def __init__(self, module: nn.Module, decay: float, every_steps: int = 1) -> None:
        """Start with the present weights of `module`. Create it after the engine, which may change their layout."""
        self._decay, self._every_steps = decay, every_steps
        self._average = {name: tensor.detach().clone() for name, tensor in _averaged(module)}
        owners = {name: name.rpartition(".") for name in self._average}
        self._places = [(name, module.get_submodule(owner), key) for name, (owner, _, key) in owners.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after `step` completed steps, if it is due."""
        if step % self._every_steps:
            return
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # one kernel per dtype
        for name, owner, key in self._places:  # looked up each time: an engine may replace a weight's memory
            average = self._average[name]
            averages, weights = by_dtype.setdefault(average.dtype, ([], []))
            averages.append(average)
            weights.append(getattr(owner, key).detach())
        for averages, weights in by_dtype.values():
            torch._foreach_lerp_(averages, weights, 1 - self._decay)

    def state(self) -> Mapping[str, Tensor]:
        """The average by names of parameters and buffers: the live tensors."""
        return self._average

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load a result of `state`. Raises ValueError if names or shapes differ from the model's."""
        if state.keys() != self._average.keys():
            names = ", ".join(sorted(state.keys() ^ self._average.keys()))
            raise ValueError(f"the average of the weights is of another model: {names}")
        for name, average in self._average.items():
            if state[name].shape != average.shape:
                shapes = f"{tuple(state[name].shape)}, the model's {tuple(average.shape)}"
                raise ValueError(f"the average of {name} is {shapes}")
            average.copy_(state[name])


def _averaged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are averaged: parameters and persistent floating-point buffers."""
    saved = module.state_dict(keep_vars=True)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if name in saved and tensor.is_floating_point():
            yield name, tensor

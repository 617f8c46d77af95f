"""An exponential moving average of the weights, for evaluation: it takes no part in the training.

    average <- decay * average + (1 - decay) * weights        after every `every_steps` steps

As timm's ModelEmaV2 has it: the average starts as a copy of the weights, and batch norm's running statistics (every
floating-point buffer) are averaged like them; counters are the model's own. The update is that of
torch.optim.swa_utils.get_ema_multi_avg_fn, one `torch._foreach_lerp_` for all tensors of a kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's parameters and floating-point buffers, on their device, in their dtype and layout.

    Every worker has one and moves it alike: weights are whole and the same everywhere after a step, whatever the
    engine. No update waits for the device.
    """

    def __init__(self, module: nn.Module, decay: float, every_steps: int = 1) -> None:
        """Begin with the weights that `module` has now: build it when the engine has laid them out."""
        self._decay, self._every_steps = decay, every_steps
        self._average = {name: tensor.detach().clone() for name, tensor in _averaged(module)}
        owners = {name: name.rpartition(".") for name in self._average}
        self._places = [(name, module.get_submodule(owner), key) for name, (owner, _, key) in owners.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` completed steps, where the average is due."""
        if step % self._every_steps:
            return
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # a foreach of one dtype is one kernel
        for name, owner, key in self._places:  # looked up each time: an engine may give a weight other memory
            average = self._average[name]
            averages, weights = by_dtype.setdefault(average.dtype, ([], []))
            averages.append(average)
            weights.append(getattr(owner, key).detach())
        for averages, weights in by_dtype.values():
            torch._foreach_lerp_(averages, weights, 1 - self._decay)

    def state(self) -> Mapping[str, Tensor]:
        """The average by the names of parameters and buffers: the live tensors."""
        return self._average

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; ValueError where its names or shapes are not this model's."""
        if state.keys() != self._average.keys():
            names = ", ".join(sorted(state.keys() ^ self._average.keys()))
            raise ValueError(f"the average of the weights is of another model: {names}")
        for name, average in self._average.items():
            if state[name].shape != average.shape:
                shapes = f"{tuple(state[name].shape)}, the model's {tuple(average.shape)}"
                raise ValueError(f"the average of {name} is {shapes}")
            average.copy_(state[name])


def _averaged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is averaged: parameters, and those buffers that a checkpoint holds, as far as they are no counters."""
    saved = module.state_dict(keep_vars=True)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if name in saved and tensor.is_floating_point():
            yield name, tensor

"""The content of a checkpoint, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from resnet_dist.checkpoint import format, tensors
from resnet_dist.checkpoint.shards import Shards


@dataclass(frozen=True)
class CheckpointContent:
    """Everything that a checkpoint holds, or the part of it that one worker writes."""

    step: int  # completed steps
    model: Mapping[str, Tensor]  # parameters and buffers by name
    optimizer: Mapping[str, Mapping[str, Tensor]]  # {parameter name: {state name: tensor}}
    state: Mapping[str, Any]  # JSON for state.json; the step is added to it
    ema: Mapping[str, Tensor] | None = None  # moving average of the weights by name
    shards: Shards = field(default_factory=dict)  # which tensors of `optimizer` are shards

    def check(self) -> None:
        """Raise ValueError for names, dtypes and JSON that a checkpoint cannot hold."""
        for named in (self.model, self.flat_optimizer(), self.ema or {}):
            tensors.check(named)
        self.state_json()

    def flat_optimizer(self) -> dict[str, Tensor]:
        """Return the optimizer state by "<parameter name>/<state name>"."""
        if any("/" in key for states in self.optimizer.values() for key in states):
            raise ValueError("the name of an optimizer state must not contain a slash")
        return {f"{name}/{key}": value for name, states in self.optimizer.items() for key, value in states.items()}

    def state_json(self) -> bytes:
        """Return the content of state.json."""
        return format.json_bytes({**self.state, "step": self.step})

    def size_bytes(self) -> int:
        """Return the size of the tensors and of state.json."""
        named = [*self.model.values(), *self.flat_optimizer().values(), *(self.ema or {}).values()]
        return sum(tensor.nbytes for tensor in named) + len(self.state_json())

    def map(self, function: Callable[[Tensor], Tensor]) -> CheckpointContent:
        """Return a copy with `function` applied to each tensor, always in the same order."""

        def mapped(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: function(tensor) for name, tensor in named.items()}

        optimizer = {name: mapped(states) for name, states in self.optimizer.items()}
        return replace(self, model=mapped(self.model), optimizer=optimizer, ema=self.ema and mapped(self.ema))

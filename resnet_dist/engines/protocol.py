"""What every engine is to the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class MicroBatch:
    """One worker's share of one micro-batch, on the device.

    images      floating [share, 3, height, width], normalised
    labels      int64 [share]
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepSums:
    """Sums over this worker's samples of one step, 0-d on the device: not yet reduced, not yet fetched."""

    loss: Tensor  # float64
    num_correct: Tensor  # float64: right top-1 answers


# {parameter name: {state name: tensor of the parameter's shape, on the CPU}}; the same for every engine and world size
OptimizerState = Mapping[str, Mapping[str, Tensor]]


class Engine(Protocol):
    """Turns the micro-batches of a step into an optimizer step: gradient = sum over the global batch / its size.

    `module` is the model itself, whole on every worker, for evaluation and checkpoints.
    """

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        ...

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """One optimizer step. The iterable yields exactly the step's micro-batches, in order."""
        ...

    def optimizer_state(self) -> OptimizerState:
        """The whole optimizer state by parameter name. A collective: every worker calls it."""
        ...

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Take up a state that `optimizer_state` of any engine gave. Names and shapes must fit: ValueError."""
        ...

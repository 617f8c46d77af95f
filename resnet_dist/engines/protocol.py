"""What every engine is to the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from resnet_dist.telemetry.step_totals import StepSums


@dataclass(frozen=True)
class MicroBatch:
    """One worker's share of one micro-batch, on the device.

    images      floating [share, 3, height, width], normalised
    labels      int64 [share]
    """

    images: Tensor
    labels: Tensor


# {parameter name: {state name: tensor of the parameter's shape}}; the same for every engine and world size
OptimizerState = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class OptimizerPart:
    """What one worker holds of an optimizer's state that is partitioned: the live tensors, on their device.

    All workers' parts together are the whole state, each element of it once.
    """

    state: OptimizerState
    # of `state`, by parameter name: what is not whole but a flat piece (number of its first element, shape of the
    # whole); a state without dimensions is whole in any case
    pieces: Mapping[str, tuple[int, tuple[int, ...]]]


@runtime_checkable
class HoldsPart(Protocol):
    """An engine whose optimizer state may be partitioned: each worker saves its own part, nothing is gathered."""

    def optimizer_part(self) -> OptimizerPart | None:
        """This worker's part; None where every worker holds all of it. The same on all workers, and no collective."""
        ...


class Engine(Protocol):
    """Turns the micro-batches of a step into an optimizer step: gradient = sum over the global batch / its size.

    `step` raises ValueError where it gets another number of micro-batches than it was made for. A trainable parameter
    that the loss does not depend on has a gradient of 0.
    `module` is the model itself, whole on every worker, for evaluation and checkpoints. A step calls it, or what wraps
    it, for each micro-batch (not its `forward`): hooks on it collect the statistics of batch norm.
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

    @property
    def skips_overflows(self) -> bool:
        """Whether a step whose gradient is not finite leaves the weights as they are, and is counted."""
        ...

    def scaler_state(self) -> Mapping[str, float]:
        """What a loss scaler must remember; empty where there is none."""
        ...

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up what `scaler_state` gave; an empty one leaves everything as it is."""
        ...

"""The interface of an engine, as the trainer uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from resnet_dist.telemetry.step_totals import StepSums


@dataclass(frozen=True)
class MicroBatch:
    """One worker's part of one micro-batch, on the device.

    images      floating [samples, 3, height, width], normalised
    labels      int64 [samples]; floating [samples, classes] if images are mixed: the part of each class
    num_broken  samples that were left out because their images are broken: fewer samples are in `images` and `labels`
    """

    images: Tensor
    labels: Tensor
    num_broken: int = 0


# {parameter name: {state name: tensor of the parameter's shape}}; the same for every engine and world size
OptimizerState = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class OptimizerPart:
    """What one worker holds of a partitioned optimizer state: the live tensors, on their device.

    The workers' parts together hold each element of the state once.
    """

    state: OptimizerState
    # {parameter name: (first element, shape of the whole parameter)}: these parameters' states are flat shards, except
    # for states without dimensions
    shards: Mapping[str, tuple[int, tuple[int, ...]]]


@runtime_checkable
class HoldsPart(Protocol):
    """An engine whose optimizer state may be partitioned. Each worker saves its own part; nothing is gathered."""

    def optimizer_part(self) -> OptimizerPart | None:
        """Return this worker's part, or None on every worker if each of them holds the whole state. No collective."""
        ...


class UpdatesLast(Protocol):
    """An engine that has the gradient of a step on every worker before it changes the state.

    `step` calls both methods. If another worker dies in between or before, the state is still that before the step.
    Such an engine has the whole optimizer state on every worker: `optimizer_state` is no collective.
    """

    def gradients(self, micro_batches: Iterable[MicroBatch]) -> StepSums:
        """Compute the gradient, and change nothing else. A collective. Raises ValueError as `step` does."""
        ...

    def update(self, sums: StepSums, learning_rate: float) -> StepSums:
        """Update the weights with the gradient; returns `sums` with what the update adds. No collective."""
        ...


def in_two_parts(engine: object) -> UpdatesLast | None:
    """`engine`, if a step of it may be made by calling `gradients` and `update`; else None.

    Not if a class of the user overrides `step` of an engine with both methods, and does something else there.
    """
    owners = []
    for name in ("step", "gradients", "update"):
        owner = next((cls for cls in type(engine).__mro__ if name in vars(cls)), None)
        if owner is None:
            return None
        owners.append(owner)
    step, *parts = owners
    return cast(UpdatesLast, engine) if all(issubclass(owner, step) for owner in parts) else None


class Engine(Protocol):
    """Turns the micro-batches of a step into an optimizer step: gradient = sum over the global batch / its size.

    The gradient of a trainable parameter that the loss does not depend on is 0. `module` is the model itself, whole on
    every worker, for evaluation and checkpoints. A step calls it, or a wrapper of it, for each micro-batch (not its
    `forward`): hooks on it collect the statistics of batch norm. The methods of the loss scaler have defaults for
    engines without one.
    """

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        ...

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """Make one optimizer step. Raises ValueError for another number of micro-batches than the engine's."""
        ...

    def optimizer_state(self) -> OptimizerState:
        """Return the whole optimizer state by parameter name. A collective."""
        ...

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Load a state that `optimizer_state` of any engine returned. Raises ValueError if it does not fit."""
        ...

    @property
    def skips_overflows(self) -> bool:
        """Whether a step whose gradient is not finite is skipped, leaving the weights as they are, and counted."""
        return False

    def scaler_state(self) -> Mapping[str, float]:
        """Return the state of the loss scaler; empty without one."""
        return {}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Load what `scaler_state` returned. An empty state changes nothing."""
        return

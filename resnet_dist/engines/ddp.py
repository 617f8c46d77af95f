"""Data-parallel training: every worker holds the model, gradients are summed over workers while they are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.engines.protocol import MicroBatch, OptimizerState, StepSums
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.loss import num_correct

# logits [share, classes], labels [share] -> 0-d sum over the samples
LossSum = Callable[[Tensor, Tensor], Tensor]


class DdpEngine:
    """Torch's DistributedDataParallel, made to sum instead of average.

    DDP divides the summed gradient by the number of workers, which is a mean over samples only if shares are equal.
    Each worker therefore scales the sum of its losses by world size / B: what comes out is the sum over all samples,
    divided by B. On one worker the model is used bare.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_sum: LossSum,
        *,
        batch_size: int,
        num_micro_batches: int,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._loss_sum = loss_sum
        self._num_micro_batches = num_micro_batches
        self._autocast_dtype = autocast_dtype
        self._device = next(module.parameters()).device
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._scale = world_size / batch_size
        self._model = _wrap(module) if world_size > 1 else module

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        return self._module

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """One optimizer step; gradients are exchanged during the backward pass of the last micro-batch."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.float64, device=self._device)
        for number, batch in enumerate(micro_batches, start=1):
            with self._exchange(last=number == self._num_micro_batches):
                with self._autocast():
                    logits = self._model(batch.images)
                loss_sum = self._loss_sum(logits, batch.labels)
                (loss_sum * self._scale).backward()
            loss += loss_sum.detach()
            correct += num_correct(logits.detach(), batch.labels)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepSums(loss, correct)

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state by parameter name, on the CPU."""
        return state_by_name(self._module, self._optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Take up `state`; ValueError if its names or shapes are not this model's."""
        load_state_by_name(self._module, self._optimizer, state)

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast_dtype)


def _wrap(module: nn.Module) -> DistributedDataParallel:
    # Buffers are the same everywhere by construction; torch 2.13 renamed the switch for broadcasting them.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    switches: dict[str, Any] = {"gradient_as_bucket_view": True, sync_buffers: False}
    return DistributedDataParallel(module, **switches)

"""Data-parallel training: every worker holds the model, gradients are summed over workers while they are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.engines.clipping import clip_scale
from resnet_dist.engines.cuda_graph import GraphedGradients
from resnet_dist.engines.missing_gradients import MissingGradients
from resnet_dist.engines.protocol import MicroBatch, OptimizerState
from resnet_dist.engines.scaler import LossScaler
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.models.loss import num_correct
from resnet_dist.optim.lars import squared_norms
from resnet_dist.telemetry.step_totals import StepSums

# logits [share, classes], labels [share] -> 0-d sum over the samples
LossSum = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DdpSettings:
    """How gradients are exchanged and kernels chosen; changes rounding at most."""

    bucket_mb: float = 25.0  # MiB exchanged at once: torch's default
    gradient_dtype: torch.dtype | None = None  # of the exchange; None: the gradients' own
    bucket_views: bool = True
    static_graph: bool = False
    compile_backend: str | None = None  # None: not compiled; `inductor` for speed
    cuda_graph: bool = False


class DdpEngine:
    """Torch's DistributedDataParallel, made to sum instead of average.

    DDP divides the summed gradient by the number of workers, which is a mean over samples only if shares are equal.
    Each worker therefore scales the sum of its losses by world size / B: what comes out is the sum over all samples,
    divided by B. On one worker the model is used bare.

    In float16 the loss is scaled, and a step whose gradients overflow is left out and counted. That is decided on the
    host, so each step waits for its backward pass; in every other precision nothing waits for the device.
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
        gradient_clipping: float | None = None,
        settings: DdpSettings | None = None,
    ) -> None:
        settings = DdpSettings() if settings is None else settings
        self._module = module
        self._optimizer = optimizer
        self._loss_sum = loss_sum
        self._num_micro_batches = num_micro_batches
        self._autocast_dtype = autocast_dtype
        self._gradient_clipping = gradient_clipping
        self._device = next(module.parameters()).device
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        # the squared norm of the gradient is the same on every worker: one speaks for all
        self._speaks = world_size == 1 or dist.get_rank() == 0
        self._scale = world_size / batch_size
        self._scaler = LossScaler(self._device) if autocast_dtype is torch.float16 else None
        # compiled before it is wrapped: DDP then splits the graph where buckets end, and overlaps
        model = module
        if settings.compile_backend is not None:
            model = torch.compile(module, dynamic=False, backend=settings.compile_backend)  # type: ignore[assignment]
        self._model = _wrap(model, settings) if world_size > 1 else model
        self._missing = MissingGradients(module)
        self._joins = world_size > 1 and not settings.static_graph
        self._graph = GraphedGradients(self._forward_backward, module) if settings.cuda_graph else None

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        return self._module

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """One optimizer step; gradients are exchanged during the backward pass of the last micro-batch.

        Raises ValueError where the number of micro-batches is not the engine's: gradients would be those of another
        batch, or would not have been exchanged.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.float64, device=self._device)
        number = 0
        for number, batch in enumerate(micro_batches, start=1):
            run = self._forward_backward if self._graph is None else self._graph
            with self._exchange(last=number == self._num_micro_batches):
                loss_sum, num_right = run(batch.images, batch.labels)
            loss += loss_sum
            correct += num_right
        if number != self._num_micro_batches:
            raise ValueError(f"a step has {self._num_micro_batches} micro-batches, got {number}")
        if self._joins:
            self._missing.check_none_hidden()
        self._missing.fill()
        squared, skipped, scaling = self._update()
        return StepSums(loss, correct, squared, skipped, scaling)

    def _forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add this micro-batch's gradients to those that are there; returns its sum of losses and of right answers."""
        with self._autocast():
            logits = self._model(images)
        loss_sum = self._loss_sum(logits, labels)
        scaled = loss_sum * self._scale
        if self._joins or scaled.grad_fn is None:
            scaled = self._missing.join(scaled)
        (scaled if self._scaler is None else self._scaler.scale(scaled)).backward()
        return loss_sum.detach(), num_correct(logits.detach(), labels)

    def _update(self) -> tuple[Tensor, bool, Mapping[str, float]]:
        """The optimizer's part of a step.

        Returns this worker's part of the gradient's squared norm, whether the step was skipped, and the loss scaler's
        part of the step's row.
        """
        if self._scaler is not None:
            self._scaler.unscale(self._optimizer)
        groups = self._optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"]]
        none = torch.zeros((), dtype=torch.float64, device=self._device)
        squared = none
        if self._speaks or self._gradient_clipping is not None:
            squared = squared_norms(gradients).sum()
        if self._gradient_clipping is not None:
            torch._foreach_mul_(gradients, clip_scale(squared, self._gradient_clipping).to(gradients[0].dtype))
        skipped = False
        scaling: Mapping[str, float] = {}
        if self._scaler is None:
            self._optimizer.step()
        else:
            skipped, scaling = self._scaler.step(self._optimizer)
        # A graph writes into the gradients that it was captured with: they are overwritten there, not dropped.
        if self._graph is None:
            self._optimizer.zero_grad(set_to_none=True)
        return squared if self._speaks else none, skipped, scaling

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state by parameter name: the live tensors, on their device."""
        return state_by_name(self._module, self._optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Take up `state`; ValueError if its names or shapes are not this model's."""
        load_state_by_name(self._module, self._optimizer, state)

    @property
    def skips_overflows(self) -> bool:
        """In float16: a step whose gradients overflow is left out."""
        return self._scaler is not None

    def scaler_state(self) -> Mapping[str, float]:
        """The loss scale and its counters in float16; empty in every other precision. Waits for the device."""
        return {} if self._scaler is None else self._scaler.state()

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up what `scaler_state` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state(state)

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._autocast_dtype is None:
            return nullcontext()
        # a captured graph must not reuse casts of weights from before it
        cache = None if self._graph is None else False
        return torch.autocast(self._device.type, dtype=self._autocast_dtype, cache_enabled=cache)


def _wrap(module: nn.Module, settings: DdpSettings) -> DistributedDataParallel:
    # Buffers are the same everywhere by construction; torch 2.13 renamed the switch for broadcasting them.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    switches: dict[str, Any] = {
        "bucket_cap_mb": settings.bucket_mb,
        "gradient_as_bucket_view": settings.bucket_views,
        "static_graph": settings.static_graph,
        sync_buffers: False,
    }
    model = DistributedDataParallel(module, **switches)
    if settings.gradient_dtype is torch.bfloat16:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        # divides by the world size before it sums, as DDP itself does after: the scale above holds for both
        model.register_comm_hook(None, bf16_compress_hook)
    return model

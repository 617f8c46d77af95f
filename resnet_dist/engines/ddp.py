"""Data-parallel training with DistributedDataParallel: gradients are summed over workers during the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.engines.accumulate import accumulate
from resnet_dist.engines.clipping import clip
from resnet_dist.engines.cuda_graph import GraphedGradients
from resnet_dist.engines.missing_gradients import MissingGradients
from resnet_dist.engines.protocol import MicroBatch, OptimizerState
from resnet_dist.engines.scaler import LossScaler
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.models.loss import num_correct
from resnet_dist.optim.groups import write_learning_rate
from resnet_dist.optim.layerwise import last_trust_ratios, squared_norms
from resnet_dist.telemetry.step_totals import StepSums

# logits [per-worker batch, classes], labels [per-worker batch] -> 0-d sum over the samples
LossSum = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DdpSettings:
    """How gradients are exchanged and kernels are chosen. Affects at most the rounding of results."""

    bucket_mb: float = 25.0  # MiB exchanged at once; torch's default
    gradient_dtype: torch.dtype | None = None  # of the exchange; None: the gradients' own
    compile_backend: str | None = None  # None: not compiled; `inductor` for speed
    cuda_graph: bool = False  # refused where batch norm exchanges statistics between workers
    wrap_alone: bool = False  # wrap the model on one worker, too: to test and to measure DDP on one GPU


class DdpEngine:
    """Torch's DistributedDataParallel, with gradients that are sums over samples.

    DDP divides the summed gradient by the number of workers, which is a mean over samples only if all per-worker
    batches have the same size. Each worker therefore scales the sum of its losses by world size / B; the result is the
    sum over all samples, divided by B. On one worker the model is not wrapped, unless the settings say so.

    In float16 the loss is scaled, and a step whose gradients overflow is skipped and counted. The host decides that, so
    each step waits for its backward pass; in other precisions nothing waits for the device.
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
        # the squared norm of the gradient is the same on every worker; the sum over workers must count it once
        self._counts_norm = world_size == 1 or dist.get_rank() == 0
        self._scale = world_size / batch_size
        self._scaler = LossScaler(self._device) if autocast_dtype is torch.float16 else None
        # compiled before it is wrapped, so that DDP splits the graph at the ends of buckets and overlaps the exchange
        model = module
        if settings.compile_backend is not None:
            model = torch.compile(module, dynamic=False, backend=settings.compile_backend)  # type: ignore[assignment]
        self._is_distributed = world_size > 1 or settings.wrap_alone
        self._missing = MissingGradients(module)
        self._graph = GraphedGradients(self._forward_backward, module) if settings.cuda_graph else None
        with nullcontext() if self._graph is None else self._graph.on_stream():
            self._model = _wrap(model, settings) if self._is_distributed else model

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        return self._module

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """Make one optimizer step. Gradients are exchanged during the backward pass of the last micro-batch.

        Raises ValueError for another number of micro-batches than the engine's.
        """
        return self.update(self.gradients(micro_batches), learning_rate)

    def gradients(self, micro_batches: Iterable[MicroBatch]) -> StepSums:
        """Compute the gradient of a step, clipped, and its norms. Raises ValueError as `step` does."""
        loss, correct = accumulate(micro_batches, self._num_micro_batches, self._device, self._run)
        if self._is_distributed:
            self._missing.check_none_hidden()
        self._missing.fill()
        squares, squared = self._norms()
        return StepSums(loss, correct, squared, gradient_squares=squares)

    def update(self, sums: StepSums, learning_rate: float) -> StepSums:
        """Update the weights with the gradient; returns `sums` with the trust ratios and the scaler's part."""
        write_learning_rate(self._optimizer, learning_rate)
        skipped = False
        scaling: Mapping[str, float] = {}
        if self._scaler is None:
            self._optimizer.step()
        else:
            skipped, scaling = self._scaler.step(self._optimizer)
        # A graph writes into the gradients that it was captured with, so they must not be dropped.
        if self._graph is None:
            self._optimizer.zero_grad(set_to_none=True)
        ratios = last_trust_ratios(self._optimizer)
        return replace(sums, skipped=skipped, scaling=scaling, trust_ratios=ratios)

    def prepare(self, batch: MicroBatch) -> None:
        """Capture the CUDA graph, if there is one, for batches of this shape. Call it before images are decoded.

        A collective. Without this call the first step does it, which is safe only if no DALI pipeline is in use.
        """
        if self._graph is not None:
            self._graph.capture(batch.images, batch.labels)

    def release(self) -> None:
        """Delete the CUDA graph, if there is one: before the process group is destroyed, which would wait for it."""
        if self._graph is not None:
            self._graph.release()

    def _run(self, batch: MicroBatch, is_last: bool) -> tuple[Tensor, Tensor]:
        run = self._forward_backward if self._graph is None else self._graph
        if isinstance(self._model, DistributedDataParallel) and not is_last:
            with self._model.no_sync():
                return run(batch.images, batch.labels)
        return run(batch.images, batch.labels)

    def _forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro-batch; return its sum of losses and its number of correct predictions."""
        with self._autocast():
            logits = self._model(images)
        loss_sum = self._loss_sum(logits, labels)
        scaled = loss_sum * self._scale
        if self._is_distributed or scaled.grad_fn is None:
            scaled = self._missing.join(scaled)
        (scaled if self._scaler is None else self._scaler.scale(scaled)).backward()
        return loss_sum.detach(), num_correct(logits.detach(), labels)

    def _norms(self) -> tuple[Tensor, Tensor]:
        """Clip the gradient.

        Returns the squared norms of the parameters' gradients, and this worker's contribution to that of the whole
        gradient, both before clipping.
        """
        if self._scaler is not None:
            self._scaler.unscale(self._optimizer)
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        squares = squared_norms(gradients)  # on every worker: each may have to record the step for all
        squared = squares.sum()
        if self._gradient_clipping is not None:
            clip(gradients, squared, self._gradient_clipping)
        return squares, squared if self._counts_norm else torch.zeros_like(squared)

    def optimizer_state(self) -> OptimizerState:
        """Return the optimizer's state by parameter name: the live tensors, on their device."""
        return state_by_name(self._module, self._optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Load `state`. Raises ValueError if its names or shapes are not this model's."""
        load_state_by_name(self._module, self._optimizer, state)

    @property
    def skips_overflows(self) -> bool:
        """Whether a step whose gradients overflow is skipped: in float16."""
        return self._scaler is not None

    def scaler_state(self) -> Mapping[str, float]:
        """Return the loss scale and its counters in float16; empty in other precisions. Waits for the device."""
        return {} if self._scaler is None else self._scaler.state()

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Load what `scaler_state` returned."""
        if self._scaler is not None and state:
            self._scaler.load_state(state)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._autocast_dtype is None:
            return nullcontext()
        # a captured graph must not reuse casts of weights made before it
        cache = None if self._graph is None else False
        return torch.autocast(self._device.type, dtype=self._autocast_dtype, cache_enabled=cache)


def _wrap(module: nn.Module, settings: DdpSettings) -> DistributedDataParallel:
    # All workers have the same buffers, which need no broadcast; torch 2.13 renamed the option for it.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {
        "bucket_cap_mb": settings.bucket_mb,
        "gradient_as_bucket_view": True,
        sync_buffers: False,
    }
    model = DistributedDataParallel(module, **options)
    if settings.gradient_dtype is torch.bfloat16:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        # divides by the world size before the sum, DDP itself after it; the scaling of the loss is right for both
        model.register_comm_hook(None, bf16_compress_hook)
    return model

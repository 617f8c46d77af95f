"""What every worker knows after a step: one all-reduce carries the loss, the counts, requests and batch statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.engines.protocol import StepSums
from resnet_dist.models.batch_norm import RunningStatistics
from resnet_dist.supervisor import Request

_LOSS, _CORRECT, _SAVE, _STOP, _HEADER = range(5)


@dataclass(frozen=True)
class StepTotals:
    """One step over all workers."""

    step: int  # completed steps
    loss: float  # mean over the global batch
    top1: float  # fraction of the global batch
    request: Request  # the strongest that any worker was asked for


class PendingTotals:
    """Totals on their way to the host: reading them waits for their step, not for what was started since."""

    def __init__(self, header: Tensor, step: int, batch_size: int) -> None:
        self._step, self._batch_size = step, batch_size
        self._ready: torch.cuda.Event | None = None
        if header.is_cuda:
            self._header = torch.empty(_HEADER, dtype=torch.float64, pin_memory=True).copy_(header, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._header = header.clone()

    def read(self) -> StepTotals:
        """The totals, as Python numbers."""
        if self._ready is not None:
            self._ready.synchronize()
        header = self._header.tolist()
        request = Request.STOP if header[_STOP] else Request.SAVE if header[_SAVE] else Request.CONTINUE
        return StepTotals(self._step, header[_LOSS] / self._batch_size, header[_CORRECT] / self._batch_size, request)


class StepExchange:
    """The one exchange of a step beside the gradients: a float64 vector, summed over all workers.

    It also carries the batch-norm sums of the step, and moves the running statistics with them.
    """

    def __init__(self, statistics: RunningStatistics, device: torch.device, batch_size: int) -> None:
        self._statistics = statistics
        self._batch_size = batch_size
        self._vector = torch.zeros(_HEADER + 3 * statistics.num_channels, dtype=torch.float64, device=device)
        self._sums = self._vector[_HEADER:].view(3, statistics.num_channels)
        statistics.collect_into(self._sums)

    def finish(self, step: int, sums: StepSums, request: Request) -> PendingTotals:
        """Exchange what step number `step` left on this worker. A collective."""
        self._vector[_LOSS], self._vector[_CORRECT] = sums.loss, sums.num_correct
        if request is not Request.CONTINUE:
            self._vector[_STOP if request is Request.STOP else _SAVE] = 1.0
        if dist.is_initialized():
            dist.all_reduce(self._vector)
        self._statistics.update(self._sums)
        pending = PendingTotals(self._vector[:_HEADER], step, self._batch_size)
        self._vector.zero_()
        return pending

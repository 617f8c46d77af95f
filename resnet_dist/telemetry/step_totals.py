"""What every worker knows after a step: one all-reduce carries the loss, the counts, requests and batch means.

Where the model has batch norm, a second one follows: its variances, around the means that are known by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.stop_request import Request

_LOSS, _CORRECT, _GRADIENT, _CHECKSUM, _SAVE, _STOP, _HEADER = range(7)


@dataclass(frozen=True)
class StepTotals:
    """One step over all workers."""

    step: int  # completed steps
    loss: float  # mean over the global batch
    top1: float  # fraction of the global batch
    gradient_norm: float  # L2, of the mean over the global batch, before clipping
    checksum: int  # of the samples and their positions, whatever worker had them
    request: Request  # the strongest that any worker was asked for
    own_s: tuple[float, ...] = ()  # what the step took each worker alone, by rank; 0.0 where that is not known
    skipped: bool = False  # whether a loss scaler left the weights as they were
    scaling: Mapping[str, float] = field(default_factory=dict)  # as StepSums has it


class PendingTotals:
    """Totals on their way to the host: reading them waits for their step, not for what was started since."""

    def __init__(self, header: Tensor, step: int, batch_size: int, sums: StepSums) -> None:
        self._step, self._batch_size = step, batch_size
        self._skipped, self._scaling = sums.skipped, sums.scaling
        self._ready: torch.cuda.Event | None = None
        if header.is_cuda:
            pinned = torch.empty(len(header), dtype=torch.float64, pin_memory=True)
            self._header = pinned.copy_(header, non_blocking=True)
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
        return StepTotals(
            step=self._step,
            loss=header[_LOSS] / self._batch_size,
            top1=header[_CORRECT] / self._batch_size,
            gradient_norm=math.sqrt(header[_GRADIENT]) if header[_GRADIENT] >= 0 else math.nan,
            checksum=int(header[_CHECKSUM]),
            request=request,
            own_s=tuple(header[_HEADER:]),
            skipped=self._skipped,
            scaling=self._scaling,
        )


class StepExchange:
    """What the workers of a step exchange beside the gradients: a float64 vector, summed over all of them.

    It also carries the batch-norm sums of the step, and moves the running statistics with them; and a place for every
    worker, where it alone writes its own time.
    """

    def __init__(self, statistics: RunningStatistics, device: torch.device, batch_size: int) -> None:
        self._statistics = statistics
        self._batch_size = batch_size
        self._rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._num_header = _HEADER + world_size
        self._vector = torch.zeros(self._num_header + 2 * statistics.num_channels, dtype=torch.float64, device=device)
        self._sums = self._vector[self._num_header :].view(2, statistics.num_channels)

    def finish(
        self, step: int, sums: StepSums, request: Request, own_s: float = 0.0, checksum: int = 0
    ) -> PendingTotals:
        """Exchange what step number `step` left on this worker, and what it took it alone. A collective.

        `checksum` is that of this worker's samples, below 2^32 for each: sums stay exact for a million samples a step.
        """
        self._vector[_LOSS], self._vector[_CORRECT] = sums.loss, sums.num_correct
        self._vector[_GRADIENT] = sums.gradient_squared
        # filled, not assigned: no tensor is made of a number of the host's
        self._vector[_CHECKSUM].fill_(checksum)
        self._vector[_HEADER + self._rank].fill_(own_s)
        if request is not Request.CONTINUE:
            self._vector[_STOP if request is Request.STOP else _SAVE] = 1.0
        self._sums.copy_(self._statistics.sums())
        add_up = dist.all_reduce if dist.is_initialized() else lambda tensor: None
        add_up(self._vector)
        self._statistics.update(self._sums, add_up)
        pending = PendingTotals(self._vector[: self._num_header], step, self._batch_size, sums)
        self._vector.zero_()
        return pending


@dataclass(frozen=True)
class StepSums:
    """This worker's sums of one step, 0-d on the device: not yet added up over workers, not yet fetched."""

    loss: Tensor  # float64
    num_correct: Tensor  # float64: right top-1 answers
    # float64: this worker's part of the squared L2 norm of the step's gradient, before clipping; the parts add up to it
    gradient_squared: Tensor
    skipped: bool = False  # the gradient was not finite, and the engine left the weights as they were
    # with a loss scaler, for the step's row of the metrics: loss_scale (of this step), num_skipped (up to this step)
    scaling: Mapping[str, float] = field(default_factory=dict)

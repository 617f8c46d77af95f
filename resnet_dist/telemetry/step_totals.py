"""The totals of a step over all workers, from one all-reduce: loss, counts, stop requests and batch-norm means.

If the model has batch norm, a second all-reduce follows for its variances, which need the global means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.models.running_statistics import RunningStatistics

_LOSS, _CORRECT, _GRADIENT, _CHECKSUM, _STOP, _HEADER = range(6)


@dataclass(frozen=True)
class StepSums:
    """One worker's sums of one step, 0-d tensors on the device: not reduced over workers, not copied to the host."""

    loss: Tensor  # float64
    num_correct: Tensor  # float64: samples whose top-1 prediction is right
    gradient_squared: Tensor  # float64: this worker's summand of the gradient's squared L2 norm, before clipping
    skipped: bool = False  # whether the engine skipped the update because the gradient was not finite
    # with a loss scaler: loss_scale (of this step) and num_skipped (up to and including this step), for the metrics
    scaling: Mapping[str, float] = field(default_factory=dict)
    # with lars and lamb: float64 [parameters with weight decay], in the order of the groups, the same on every worker
    trust_ratios: Tensor | None = None
    # of each parameter's gradient, before clipping: float64 [parameters], in the order of the groups; None where the
    # engine does not have it
    gradient_squares: Tensor | None = None


@dataclass(frozen=True)
class StepTotals:
    """One step over all workers."""

    step: int  # completed steps
    loss: float  # mean over the global batch
    top1: float  # fraction of the global batch
    gradient_norm: float  # L2 norm of the global batch's mean gradient, before clipping
    checksum: int  # of the samples and their positions; independent of which worker had them
    stop_requested: bool  # by the supervisor of any worker
    num_left_out: int = 0  # broken samples of the global batch, which the means and fractions leave out
    tallies: tuple[float, ...] = ()  # the sums of the ledger's numbers
    local_step_times_s: tuple[float, ...] = ()  # by rank, without waits for other workers; 0.0 if unknown
    skipped: bool = False  # whether the loss scaler skipped the update
    scaling: Mapping[str, float] = field(default_factory=dict)  # see StepSums
    trust_ratios: tuple[float, ...] = ()  # of the step, by parameter with weight decay; empty if it was skipped


class PendingTotals:
    """Totals on their way to the host. Reading them waits for their own step only, not for later work."""

    def __init__(
        self, header: Tensor, step: int, batch_size: int, sums: StepSums, num_tallies: int, num_left_out: int
    ) -> None:
        self._step, self._batch_size, self._num_tallies = step, batch_size, num_tallies
        self._num_left_out = num_left_out
        self.sums = sums  # of this worker
        self._num_header = len(header)
        if sums.trust_ratios is not None and not sums.skipped:
            header = torch.cat((header, sums.trust_ratios))
        self._ready: torch.cuda.Event | None = None
        if header.is_cuda:
            pinned = torch.empty(len(header), dtype=torch.float64, pin_memory=True)
            self._header = pinned.copy_(header, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._header = header.clone()

    def read(self) -> StepTotals:
        """The totals as Python numbers."""
        if self._ready is not None:
            self._ready.synchronize()
        header, times = self._header.tolist(), _HEADER + self._num_tallies
        return StepTotals(
            step=self._step,
            loss=header[_LOSS] / self._batch_size,
            top1=header[_CORRECT] / (self._batch_size - self._num_left_out),
            gradient_norm=math.sqrt(header[_GRADIENT]) if header[_GRADIENT] >= 0 else math.nan,
            checksum=int(header[_CHECKSUM]),
            tallies=tuple(header[_HEADER:times]),
            stop_requested=header[_STOP] > 0,
            num_left_out=self._num_left_out,
            local_step_times_s=tuple(header[times : self._num_header]),
            skipped=self.sums.skipped,
            scaling=self.sums.scaling,
            trust_ratios=tuple(header[self._num_header :]),
        )


class StepExchange:
    """Sums a float64 vector over all workers after each step, and updates the running statistics of batch norm.

    The vector holds the totals' header, the `num_tallies` numbers of the ledger, one element per worker for its local
    step time, and the batch-norm sums.
    """

    def __init__(
        self, statistics: RunningStatistics, device: torch.device, batch_size: int, num_tallies: int = 0
    ) -> None:
        self._statistics = statistics
        self._batch_size, self._num_tallies = batch_size, num_tallies
        self._rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._num_header = _HEADER + num_tallies + world_size
        self._vector = torch.zeros(self._num_header + 2 * statistics.num_channels, dtype=torch.float64, device=device)
        self._sums = self._vector[self._num_header :].view(2, statistics.num_channels)

    def finish(
        self,
        step: int,
        sums: StepSums,
        stop_requested: bool = False,
        local_step_time_s: float = 0.0,
        checksum: int = 0,
        tallies: Sequence[int] = (),
        num_left_out: int = 0,
        update: Callable[[StepSums], StepSums] = lambda sums: sums,
    ) -> PendingTotals:
        """Reduce the sums of step number `step` over all workers. A collective.

        `update` is called when nothing is left to be exchanged, before the running statistics change: an engine that
        has not updated the weights yet does so, and returns the sums with what that adds.

        `checksum` is that of this worker's samples, below 2^32 each: the sum is exact up to a million samples a step.
        `tallies` are numbers below 2^32, whose sums over up to 2^21 workers are exact. `num_left_out` is the number of
        broken samples on all workers, with which `sums.loss` is scaled already.
        """
        self._vector[_LOSS], self._vector[_CORRECT] = sums.loss, sums.num_correct
        self._vector[_GRADIENT] = sums.gradient_squared
        # fill_ instead of assignment: it makes no tensor on the host
        self._vector[_CHECKSUM].fill_(checksum)
        for number, value in enumerate(tallies, start=_HEADER):
            if value:
                self._vector[number].fill_(value)
        self._vector[_HEADER + self._num_tallies + self._rank].fill_(local_step_time_s)
        if stop_requested:
            self._vector[_STOP] = 1.0
        self._sums.copy_(self._statistics.sums())
        all_reduce = dist.all_reduce if dist.is_initialized() else lambda tensor: None

        def on_reduced() -> None:
            nonlocal sums
            sums = update(sums)

        all_reduce(self._vector)
        self._statistics.update(self._sums, all_reduce, on_reduced)
        header = self._vector[: self._num_header]
        pending = PendingTotals(header, step, self._batch_size, sums, self._num_tallies, num_left_out)
        self._vector.zero_()
        return pending

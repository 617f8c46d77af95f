"""The spans of batch norm: which workers they lie on, which samples of this worker they contain, and their exchange.

A span is a fixed range of positions of the global batch, independent of the number of workers and of micro-batches.
Every micro-batch is split over the workers in the same way, so the slices of spans are computed once.

The exchanges are operators of torch, `torch.ops.resnet_dist.span_moments` and `span_sums`, which compiled code calls
without looking inside: they wait for other workers, measure that time and compare what the workers call.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.models.span_slices import SpanSlice, SpanTable, span_slices
from resnet_dist.recipe.batch_layout import BatchLayout, SpanGroup, span_groups

_END = -1  # instead of a layer: the end of the forward pass
_CHECKED = 2  # forward passes on a GPU that are checked, and the backward passes between them


class Spans:
    """The spans of every micro-batch on one worker, used by all batch norms of a model.

    `span` is a number of samples that divides the micro-batch, `global` (the micro-batch), or `worker` (each worker's
    part of the micro-batch, the only setting whose statistics depend on the number of workers). Creation is a
    collective of the workers that share spans. `group` is None if all spans of this worker lie on it entirely.

    `recording` is True during a forward pass of the model in training, whose statistics belong to the step. It is False
    when activation checkpointing repeats parts of the forward pass during the backward pass.

    `counts` is None if every span has all of its `span_size` samples. After `leave_out` it has the samples that are
    left of each slice's span, on all workers.
    """

    def __init__(self, layout: BatchLayout, rank: int, span: int | Literal["global", "worker"]) -> None:
        self.handle = next(_HANDLES)  # for the operators of torch, whose arguments cannot be objects
        _ALL[self.handle] = self
        self.recording = False
        self.waited_s = 0.0  # seconds spent in collectives, which wait for other workers
        self.group: dist.ProcessGroup | None = None
        self.counts: list[int] | None = None
        self._divisors: Tensor | None = None  # `counts` on the device, at least 1: float64 [slices, 1]
        self._counted: dict[int, Tensor] = {}  # see `value_counts`
        self._layout, self._rank = layout, rank
        self.num_samples = len(layout.worker_micro_batch(0, rank))
        self.span_size = self.num_samples
        self.smallest = layout.smallest_part  # samples of the smallest span on any worker
        self.slices: tuple[SpanSlice, ...] = (SpanSlice(0, 0, self.num_samples, owned=True),)
        self._whole: tuple[SpanSlice, ...] = self.slices  # before any sample is left out
        self._origin = layout.worker_micro_batch(0, rank).start  # the position where the span of row 0 begins
        self._layers: list[str] = []
        self._widest = 0  # channels of the widest layer
        if span == "worker":
            return
        self.span_size = self.smallest = layout.micro_batch_size if span == "global" else span
        teams = span_groups(layout, self.span_size)
        own = next(team for team in teams if rank in team.ranks)
        self.join(own, _process_group(own.ranks) if len(teams) < layout.world_size else None, layout, rank)

    def join(self, members: SpanGroup, group: dist.ProcessGroup | None, layout: BatchLayout, rank: int) -> None:
        """Exchange spans with the workers `members`, which include this one, through `group`."""
        self.group = group
        self.slices = span_slices(layout.worker_micro_batch(0, rank), self.span_size, members.positions.start)
        self._ranks = members.ranks
        self._whole, self._origin = self.slices, members.positions.start
        self._table = SpanTable(members, layout, self.span_size)
        self._own = self._all = self._table.own(rank)
        self._checked = True  # whether messages name their layer
        self._num_forward_passes = 0
        # whether the values of all slices are the message
        self._all_shared = len(self._own) == len(self.slices) == self._table.num_slots

    def leave_out(self, good: NDArray[np.bool_] | None, device: torch.device) -> None:
        """Let the next forward passes have only the samples `good`, bool [samples of the micro-batch on all workers].

        None: all samples. All workers of a group must call it with the same samples.
        """
        if good is None and self.counts is None:
            return
        own = self._layout.worker_micro_batch(0, self._rank)
        good = np.ones(self._layout.micro_batch_size, np.bool_) if good is None else good
        before = np.concatenate(([0], np.cumsum(good[own.start : own.stop]))).tolist()  # samples left before a sample
        self.num_samples = before[-1]
        self.slices = tuple(replace(part, start=before[part.start], stop=before[part.stop]) for part in self._whole)
        starts = [self._origin + part.row * self.span_size for part in self._whole]
        counts = [int(good[start : start + self.span_size].sum()) for start in starts]
        if self.group is not None:
            self._own = self._all if good.all() else self._table.own(self._rank, good)
        self.counts = self._divisors = None
        self._counted = {}
        if not good.all():
            self.counts = counts
            self._divisors = torch.tensor(counts, dtype=torch.float64).clamp_min(1)[:, None].to(device)

    def num_values(self, num_positions: int) -> Tensor | int:
        """The values per channel in a slice's whole span: a number, or after `leave_out` float64 [slices, 1].

        `num_positions` is the number of values per sample and channel. A span without samples counts as one sample.
        """
        return (self.span_size if self._divisors is None else self._divisors) * num_positions

    def owned_counts(self) -> list[int] | None:
        """The samples that are left of each span that this worker owns; None if all are."""
        if self.counts is None:
            return None
        return [count for count, part in zip(self.counts, self.slices, strict=True) if part.owned]

    def add_layer(self, name: str, num_channels: int) -> int:
        """Register the layer `name`; returns its number, which is the same on every worker."""
        self._layers.append(name)
        self._widest = max(self._widest, num_channels)
        return len(self._layers) - 1

    def value_counts(self, num_positions: int, device: torch.device) -> Tensor:
        """`num_values` as torch's kernels for CUDA take it: int32 [slices, 1], at least 1."""
        if num_positions not in self._counted:
            values = self.num_values(num_positions)
            if isinstance(values, int):  # made on the device: a copy from the host would wait for it
                values = torch.full((len(self.slices), 1), values, device=device)
            self._counted[num_positions] = values.to(torch.int32)
        return self._counted[num_positions]

    def moments(self, layer: int, statistics: Sequence[Tensor], epsilon: float) -> Tensor:
        """Mean and 1 / sqrt(biased variance + epsilon) of whole spans: float64 [2, slices, channels]. A collective.

        `statistics` are those of the slices of this worker, two for each slice: on a CPU the means and the biased
        variances of equal parts of it, each [parts, channels]; on a GPU the mean and 1 / sqrt(variance + epsilon), each
        [channels].
        """
        if on_gpu(statistics[0]):
            return self._moments_on_gpu(layer, statistics, epsilon)
        found = np.empty((len(self.slices), 2, statistics[0].shape[-1]))
        for row, means, variances in zip(found, statistics[::2], statistics[1::2], strict=True):
            row[0], row[1] = _combined(means.numpy(), variances.numpy())
        gathered = self._exchange(2 * layer, found)
        for number, (rows, counts) in self._own.items():
            found[number, 0], found[number, 1] = _combined(gathered[rows, 0], gathered[rows, 1], counts.numpy())
        found[:, 1] = 1 / np.sqrt(found[:, 1] + epsilon)
        return torch.from_numpy(np.ascontiguousarray(found.swapaxes(0, 1)))

    def _moments_on_gpu(self, layer: int, statistics: Sequence[Tensor], epsilon: float) -> Tensor:
        own = statistics[0].new_empty((len(self.slices), 2, len(statistics[0])), dtype=torch.float64)
        torch.cat(list(statistics), out=own.view(-1))
        # torch's kernel divides by the deviations of unused rows, too
        gathered = self._exchange_on_gpu(2 * layer, self._message(own, unused=1.0))
        found: list[Sequence[Tensor]] = [pair.unbind() for pair in own]
        for number, (rows, counts) in self._own.items():
            if counts.device != own.device:  # copied once, since a copy waits for the device
                self._own[number] = (rows, counts := counts.to(own.device))
            means, deviations = gathered[rows].unbind(1)
            found[number] = torch.batch_norm_gather_stats_with_counts(
                own, means, deviations, None, None, 0.0, epsilon, counts
            )
        values = torch.stack([row for pair in found for row in pair])
        return values.view(len(found), 2, -1).transpose(0, 1).contiguous()

    def sums(self, layer: int, own: Sequence[Tensor]) -> Tensor:
        """Sums over whole spans: [2, slices, channels]. A collective.

        `own` are those over the slices of this worker, each [channels], two for each slice.
        """
        if on_gpu(own[0]):
            return self._sums_on_gpu(layer, own)
        sums = np.concatenate([each.numpy() for each in own]).reshape(len(self.slices), 2, -1)
        gathered = self._exchange(2 * layer + 1, sums)
        for number, (rows, _) in self._own.items():
            sums[number] = gathered[rows].sum(0)
        return torch.from_numpy(np.ascontiguousarray(sums.swapaxes(0, 1)))

    def _sums_on_gpu(self, layer: int, own: Sequence[Tensor]) -> Tensor:
        sums = torch.stack(list(own)).view(len(self.slices), 2, -1)
        gathered = self._exchange_on_gpu(2 * layer + 1, self._message(sums))
        if self._all_shared and len(sums) == 1:
            return gathered[self._own[0][0]].sum(0).unsqueeze(1)
        for number, (rows, _) in self._own.items():
            sums[number] = gathered[rows].sum(0)
        return sums.transpose(0, 1).contiguous()

    def end_forward(self, device: torch.device) -> None:
        """Check that the other workers have called the same layers in this forward pass. A collective."""
        if self.group is None or not self._layers or not self._checked:
            return
        if device.type == "cpu":
            self._exchange(_END, np.empty((len(self.slices), 2, 0)))
        else:
            self._compare(_END, device)
            self._num_forward_passes += 1
            self._checked = self._num_forward_passes < _CHECKED

    def _message(self, own: Tensor, unused: float = 0.0) -> Tensor:
        """The values of the slices of spans on several workers: [slots, 2, channels] of `own`, [slices, 2, channels].

        A worker with fewer such slices than others has rows of `unused`.
        """
        if self._all_shared:
            return own
        rows = own.new_full((self._table.num_slots, *own.shape[1:]), unused)
        for slot, number in enumerate(self._own):
            rows[slot] = own[number]
        return rows

    def _exchange(self, call: int, own: NDArray[Any]) -> NDArray[np.float64]:
        """Gather the values of common spans from the workers of the group, on a CPU: [rows of the table, 2, channels].

        `own` is [slices, 2, channels]. `call` identifies the layer and the pass. All messages have one size and end
        with `call`: if workers call different layers, all of them raise RecipeError instead of waiting for each other.
        """
        num_ranks, num_slots, num_values = len(self._ranks), self._table.num_slots, own[0].size
        size = 2 * num_slots * self._widest + 1
        message, gathered = np.zeros(size), np.empty((num_ranks, size))
        for slot, number in enumerate(self._own):
            message[slot * num_values : (slot + 1) * num_values] = own[number].ravel()
        message[-1] = call
        started = time.perf_counter()
        _all_gather(torch.from_numpy(gathered).view(-1), torch.from_numpy(message), self.group)
        self.waited_s += time.perf_counter() - started
        self._check(gathered[:, -1].tolist())
        return gathered[:, : num_slots * num_values].reshape(num_ranks * num_slots, *own.shape[1:])

    def _exchange_on_gpu(self, call: int, own: Tensor) -> Tensor:
        """The same on a GPU, for the result of `_message`. Only the first passes check `call`: it waits for the GPU."""
        if self._checked:
            self._compare(call, own.device)
        gathered = own.new_empty((len(self._ranks) * self._table.num_slots, *own.shape[1:]))
        _all_gather(gathered, own, self.group)
        return gathered

    def _compare(self, call: int, device: torch.device) -> None:
        """Check that the workers of the group make the same call. A collective."""
        own = torch.full((1,), call, dtype=torch.float64, device=device)
        calls = own.new_empty(len(self._ranks))
        _all_gather(calls, own, self.group)
        self._check(calls.tolist())

    def _check(self, calls: list[float]) -> None:
        if len(set(calls)) == 1:
            return
        where = {rank: self._describe(int(call)) for rank, call in zip(self._ranks, calls, strict=True)}
        first = self._ranks.start
        other = next(rank for rank in self._ranks if where[rank] != where[first])
        raise RecipeError(
            "batch_norm.span",
            f"worker {first} is at {where[first]}, worker {other} at {where[other]}: workers with common spans must"
            " call the same batch norms in the same order",
            "a model that calls the same batch norms on every worker, or a span that lies on one worker",
        )

    def _describe(self, call: int) -> str:
        if call == _END:
            return "the end of the forward pass"
        return f"{self._layers[call // 2]} ({'backward' if call % 2 else 'forward'} pass)"


def _combined(
    means: NDArray[Any], variances: NDArray[Any], counts: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and biased variance, float64 [channels], of values of which parts have `means` and `variances`.

    Those are [parts, channels], of `counts` values each; None: all parts have as many. Combined as in Chan, Golub and
    LeVeque (1983, equation 2.1) in float64: sums of squares lose precision if the mean is large.
    """
    if len(means) == 1:
        return means[0], variances[0]

    def average(values: NDArray[Any]) -> Any:
        return values.mean(0, dtype=np.float64) if counts is None else counts @ values / counts.sum()

    mean = average(means)
    return mean, average(variances) + average(np.square(means - mean))


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _all_gather(gathered: Tensor, own: Tensor, group: dist.ProcessGroup | None) -> None:
    """torch's all_gather_single, which torch 2.11 calls all_gather_into_tensor."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, own, group=group)


def _process_group(ranks: range) -> dist.ProcessGroup | None:
    """The process group of this worker's `ranks`; None if it is alone.

    Every worker calls this once, also alone: torch names later groups by the number of those before. The group of all
    workers is a new one, too: in the default group, an exchange would wait for the all-reduces of gradients before it.
    """
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    return group if len(ranks) > 1 and isinstance(group, dist.ProcessGroup) else None


_HANDLES = itertools.count()
_ALL: WeakValueDictionary[int, Spans] = WeakValueDictionary()
_LIBRARY = torch.library.Library("resnet_dist", "FRAGMENT")
_LIBRARY.define("span_moments(Tensor[] statistics, float epsilon, int spans, int layer) -> Tensor")
_LIBRARY.define("span_sums(Tensor[] own, int spans, int layer) -> Tensor")


def _span_moments(statistics: list[Tensor], epsilon: float, spans: int, layer: int) -> Tensor:
    return _ALL[spans].moments(layer, statistics, epsilon)


def _span_sums(own: list[Tensor], spans: int, layer: int) -> Tensor:
    return _ALL[spans].sums(layer, own)


def _fake_moments(statistics: list[Tensor], epsilon: float, spans: int, layer: int) -> Tensor:
    first = statistics[0]
    return first.new_empty((2, len(_ALL[spans].slices), first.shape[-1]), dtype=torch.float64)


def _fake_sums(own: list[Tensor], spans: int, layer: int) -> Tensor:
    return own[0].new_empty((2, len(own) // 2, len(own[0])))


OPERATORS = {"resnet_dist::span_moments": _span_moments, "resnet_dist::span_sums": _span_sums}  # and what they call
for _name, _function in OPERATORS.items():
    _LIBRARY.impl(_name.removeprefix("resnet_dist::"), _function, "CompositeExplicitAutograd")
torch.library.register_fake("resnet_dist::span_moments", _fake_moments, lib=_LIBRARY)
torch.library.register_fake("resnet_dist::span_sums", _fake_sums, lib=_LIBRARY)

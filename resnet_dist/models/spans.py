"""The spans of batch norm: which workers they lie on, which samples of this worker they contain, and their exchange.

A span is a fixed range of positions of the global batch, independent of the number of workers and of micro-batches.
Every micro-batch is split over the workers in the same way, so the slices of spans are computed once.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import BatchLayout

_END = -1  # instead of a layer: the end of the forward pass


@dataclass(frozen=True)
class SpanSlice:
    """The samples [start, stop) of a worker's part of a micro-batch that belong to one span."""

    row: int  # number of the span in its group
    start: int
    stop: int
    owned: bool  # whether it has the span's first sample: each span has one owner

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.stop - self.start


@dataclass(frozen=True)
class SpanGroup:
    """Workers with common spans: their ranks, and their positions in a micro-batch."""

    ranks: range
    positions: range


def span_groups(layout: BatchLayout, span: int) -> list[SpanGroup]:
    """Divide the workers into the smallest ranges such that no span of `span` samples lies on two of them.

    >>> [list(group.ranks) for group in span_groups(BatchLayout(size=48, world_size=4), span=24)]
    [[0, 1], [2, 3]]
    """
    cuts = [(rank, edge) for rank, edge in enumerate(layout.boundaries(), start=1) if edge % span == 0]
    starts = [(0, 0), *cuts]
    stops = [*cuts, (layout.world_size, layout.micro_batch_size)]
    return [
        SpanGroup(range(first, last), range(start, stop))
        for (first, start), (last, stop) in zip(starts, stops, strict=True)
    ]


def span_slices(own: range, span: int, origin: int) -> tuple[SpanSlice, ...]:
    """Divide the worker's positions `own` into spans of `span` samples; row 0 is the span that begins at `origin`.

    >>> [(part.row, part.size, part.owned) for part in span_slices(range(10, 24), span=8, origin=8)]
    [(0, 6, False), (1, 8, True)]
    """
    inner = range(own.start - own.start % span + span, own.stop, span)
    edges = [own.start, *inner, own.stop]
    return tuple(
        SpanSlice((start - origin) // span, start - own.start, stop - own.start, owned=start % span == 0)
        for start, stop in itertools.pairwise(edges)
    )


class Spans:
    """The spans of every micro-batch on one worker, used by all batch norms of a model.

    `span` is a number of samples that divides the micro-batch, `global` (the micro-batch), or `worker` (each worker's
    part of the micro-batch, the only setting whose statistics depend on the number of workers). Creation is a
    collective if there is a process group. `group` is None if all spans of this worker lie on it entirely.

    `recording` is True during a forward pass of the model in training, whose statistics belong to the step. It is False
    when activation checkpointing repeats parts of the forward pass during the backward pass.

    `counts` is None if every span has all of its `span_size` samples. After `leave_out` it has the samples that are
    left of each slice's span, on all workers.
    """

    def __init__(self, layout: BatchLayout, rank: int, span: int | Literal["global", "worker"]) -> None:
        self.recording = False
        self.waited_s = 0.0  # seconds spent in collectives, which wait for other workers
        self.group: dist.ProcessGroup | None = None
        self.counts: list[int] | None = None
        self._divisors: Tensor | None = None  # `counts` on the device, at least 1: float64 [slices, 1, 1]
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
        for members in span_groups(layout, self.span_size):
            group = _process_group(members.ranks, layout.world_size)
            if rank in members.ranks:
                self.join(members, group, layout, rank)

    def join(self, members: SpanGroup, group: dist.ProcessGroup | None, layout: BatchLayout, rank: int) -> None:
        """Exchange spans with the workers `members`, which include this one, through `group`."""
        self.group = group
        self.slices = span_slices(layout.worker_micro_batch(0, rank), self.span_size, members.positions.start)
        self._ranks = members.ranks
        self._whole, self._origin = self.slices, members.positions.start
        self._table = _Table(members, layout, self.span_size)
        self._own = self._all = self._table.own(rank)
        self._checked = True  # whether messages name their layer

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
        if not good.all():
            self.counts = counts
            self._divisors = torch.tensor(counts, dtype=torch.float64).clamp_min(1)[:, None, None].to(device)

    def num_values(self, num_positions: int) -> Tensor | int:
        """The values per channel in a slice's whole span: a number, or after `leave_out` float64 [slices, 1, 1].

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

    def moments(self, layer: int, own: Tensor) -> Tensor:
        """Mean and biased variance of whole spans, from those of this worker's slices. A collective.

        `own` and the result are float64 [slices, 2, channels]. The slices of a span are combined as in Chan, Golub and
        LeVeque (1983, equation 2.1): sums of squares lose precision if the mean is large.
        """
        gathered, combined = self._exchange(2 * layer, own), own.clone()
        for number, (rows, weights) in self._own.items():
            if weights.device != own.device:  # copied once, since a copy waits for the device
                self._own[number] = (rows, weights := weights.to(own.device))
            means, variances = gathered[rows].unbind(1)
            mean = means[0] + (weights * (means - means[0])).sum(0)
            combined[number, 0] = mean
            combined[number, 1] = (weights * (variances + (means - mean).square())).sum(0)
        return combined

    def sums(self, layer: int, own: Tensor) -> Tensor:
        """Sums over whole spans, from those over this worker's slices: float64 [slices, 2, channels]. A collective."""
        gathered, combined = self._exchange(2 * layer + 1, own), own.clone()
        for number, (rows, _) in self._own.items():
            combined[number] = gathered[rows].sum(0)
        return combined

    def end_forward(self, device: torch.device) -> None:
        """Check that the other workers have called the same layers in this forward pass. A collective."""
        if self.group is not None and self._layers and self._checked:
            self._exchange(_END, torch.zeros((len(self.slices), 2, 0), dtype=torch.float64, device=device))
            self._checked = device.type == "cpu"

    def _exchange(self, call: int, own: Tensor) -> Tensor:
        """Gather the values of common spans from the workers of the group: float64 [rows of the table, 2, channels].

        `call` identifies the layer and the pass. On a CPU, and in the first forward pass on a GPU (where the check
        waits for the device), all messages have one size and end with `call`: if workers call different layers, all of
        them raise RecipeError instead of waiting for each other.
        """
        rows = torch.zeros((self._table.num_slots, *own.shape[1:]), dtype=own.dtype, device=own.device)
        for slot, number in enumerate(self._own):
            rows[slot] = own[number]
        message = rows.flatten()
        if self._checked:
            message = rows.new_zeros(2 * self._table.num_slots * self._widest + 1)
            message[: rows.numel()] = rows.flatten()
            message[-1].fill_(call)
        gathered = message.new_empty((len(self._ranks), len(message)))
        started = time.perf_counter()
        dist.all_gather(list(gathered.unbind(0)), message, group=self.group)
        self.waited_s += time.perf_counter() - started
        if self._checked:
            self._check(gathered[:, -1].tolist())
        return gathered[:, : rows.numel()].reshape(len(self._ranks) * self._table.num_slots, *own.shape[1:])

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


class _Table:
    """The layout of the gathered values: `num_slots` rows per worker, one for each slice of a span on several workers.

    Only the first and the last slice of a worker can be parts of such spans. Unused rows are zero.
    """

    def __init__(self, members: SpanGroup, layout: BatchLayout, span: int) -> None:
        self._first_rank = members.ranks.start
        parts_of = [layout.worker_micro_batch(0, rank) for rank in members.ranks]
        self._shared = [
            {i: part for i, part in enumerate(span_slices(own, span, members.positions.start)) if part.size < span}
            for own in parts_of
        ]
        self.num_slots = max(map(len, self._shared))
        self._rows: list[tuple[int, range] | None] = []  # number of the span, positions in the micro-batch
        for own, shared in zip(parts_of, self._shared, strict=True):
            self._rows += [(part.row, own[part.start : part.stop]) for part in shared.values()]
            self._rows += [None] * (self.num_slots - len(shared))

    def own(self, rank: int, good: NDArray[np.bool_] | None = None) -> dict[int, tuple[slice, Tensor]]:
        """For each slice of `rank` in a span on several workers, by number: the rows of that span and their weights.

        The rows are adjacent. The weights, float64 [rows, 1], are fractions of the span's samples; 0 for unused rows.
        `good`, bool [samples of the micro-batch], are the samples that count; None: all.
        """

        def size(positions: range) -> int:
            return len(positions) if good is None else int(good[positions.start : positions.stop].sum())

        entries = {}
        for number, span_slice in self._shared[rank - self._first_rank].items():
            parts = [i for i, row in enumerate(self._rows) if row is not None and row[0] == span_slice.row]
            rows = slice(parts[0], parts[-1] + 1)
            sizes = [[0 if row is None else size(row[1])] for row in self._rows[rows]]
            total = max(1, sum(number for (number,) in sizes))
            entries[number] = (rows, torch.tensor(sizes, dtype=torch.float64) / total)
        return entries


def _process_group(ranks: range, world_size: int) -> dist.ProcessGroup | None:
    """The process group of `ranks`. All workers must create all groups, in the same order."""
    if len(ranks) == 1:
        return None
    if len(ranks) == world_size:
        return dist.group.WORLD
    group = dist.new_group(list(ranks))
    return group if isinstance(group, dist.ProcessGroup) else None  # a placeholder if this worker is not a member

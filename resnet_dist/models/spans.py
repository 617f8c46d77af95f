"""Where batch-norm spans lie: which workers share them, and which of this worker's samples belong to which.

A span is a fixed run of positions of the global batch, so neither the number of workers nor the split into
micro-batches changes what it holds. Every micro-batch is split over the workers in the same way: computed once.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import BatchLayout

_END = -1  # in place of a layer: the forward pass has ended


@dataclass(frozen=True)
class Piece:
    """A run of this worker's samples that belong to one span: samples [start, stop) of the share."""

    row: int  # the span's number among those of its team
    start: int
    stop: int
    owned: bool  # whether the span's first sample is here: one worker speaks for each span

    @property
    def size(self) -> int:
        """Samples of the piece."""
        return self.stop - self.start


@dataclass(frozen=True)
class Team:
    """The workers that share spans with each other: their ranks, and their positions of a micro-batch."""

    ranks: range
    positions: range


def teams(layout: BatchLayout, span: int) -> list[Team]:
    """Cut the workers into the smallest runs such that no span of `span` samples belongs to two of them.

    >>> [list(team.ranks) for team in teams(BatchLayout(size=48, world_size=4), span=24)]
    [[0, 1], [2, 3]]
    """
    cuts = [(rank, edge) for rank, edge in enumerate(layout.boundaries(), start=1) if edge % span == 0]
    starts = [(0, 0), *cuts]
    stops = [*cuts, (layout.world_size, layout.micro_batch_size)]
    return [
        Team(range(first, last), range(start, stop)) for (first, start), (last, stop) in zip(starts, stops, strict=True)
    ]


def pieces(own: range, span: int, origin: int) -> tuple[Piece, ...]:
    """Cut the worker's positions `own` where spans of `span` samples end; row 0 is the span that begins at `origin`.

    >>> [(piece.row, piece.size, piece.owned) for piece in pieces(range(10, 24), span=8, origin=8)]
    [(0, 6, False), (1, 8, True)]
    """
    inner = range(own.start - own.start % span + span, own.stop, span)
    edges = [own.start, *inner, own.stop]
    return tuple(
        Piece((start - origin) // span, start - own.start, stop - own.start, owned=start % span == 0)
        for start, stop in itertools.pairwise(edges)
    )


class Spans:
    """The spans of every micro-batch on one worker. All batch norms of a model share one.

    `span` is a number of samples that divides the micro-batch, `global` (the micro-batch itself) or `worker` (each
    worker's share, however large: the one setting whose statistics depend on the number of workers).
    With a process group up, creating one is a collective. `group` is None where this worker shares no span.

    `recording` is True while the model's forward pass runs in training: what a layer normalises then belongs to the
    step. Activation checkpointing repeats parts of the forward pass during the backward pass: `recording` is False.
    """

    def __init__(self, layout: BatchLayout, rank: int, span: int | Literal["global", "worker"]) -> None:
        self.recording = False
        self.waited_s = 0.0  # in collectives: other workers' time, not this one's
        self.group: dist.ProcessGroup | None = None
        self.share_size = len(layout.share(0, rank).own)
        self.span_size = self.share_size
        self.smallest = layout.micro_batch_size // layout.world_size  # samples of the smallest span on any worker
        self.pieces: tuple[Piece, ...] = (Piece(0, 0, self.share_size, owned=True),)
        self._layers: list[str] = []
        self._widest = 0  # channels of the widest layer
        if span == "worker":
            return
        self.span_size = self.smallest = layout.micro_batch_size if span == "global" else span
        for team in teams(layout, self.span_size):
            group = _process_group(team.ranks, layout.world_size)
            if rank in team.ranks:
                self.join(team, group, layout, rank)

    def join(self, team: Team, group: dist.ProcessGroup | None, layout: BatchLayout, rank: int) -> None:
        """Share spans with the workers of `team`, this one among them, through `group`."""
        self.group = group
        self.pieces = pieces(layout.share(0, rank).own, self.span_size, team.positions.start)
        self._ranks = team.ranks
        self._table = _Table(team, layout, self.span_size)
        self._own = self._table.own(rank)
        self._checked = True  # whether messages say which layer they come from

    def add_layer(self, name: str, num_channels: int) -> int:
        """The number of the layer `name`, which is the same on every worker."""
        self._layers.append(name)
        self._widest = max(self._widest, num_channels)
        return len(self._layers) - 1

    def moments(self, layer: int, own: Tensor) -> Tensor:
        """Mean and biased variance of whole spans, from those of this worker's pieces. A collective.

        `own` and the result are float64 [pieces, 2, channels]. The parts of a span are combined around its mean, as
        Chan, Golub and LeVeque (1983, equation 2.1) do: sums of squares cancel where the mean is large.
        """
        gathered, combined = self._exchange(2 * layer, own), own.clone()
        for number, (rows, weights) in self._own.items():
            if weights.device != own.device:  # once: a copy at each call would wait for the device
                self._own[number] = (rows, weights := weights.to(own.device))
            means, variances = gathered[rows].unbind(1)
            mean = means[0] + (weights * (means - means[0])).sum(0)
            combined[number, 0] = mean
            combined[number, 1] = (weights * (variances + (means - mean).square())).sum(0)
        return combined

    def sums(self, layer: int, own: Tensor) -> Tensor:
        """Sums over whole spans, from those over this worker's pieces: float64 [pieces, 2, channels]. A collective."""
        gathered, combined = self._exchange(2 * layer + 1, own), own.clone()
        for number, (rows, _) in self._own.items():
            combined[number] = gathered[rows].sum(0)
        return combined

    def end_forward(self, device: torch.device) -> None:
        """Check that the other workers have called the same layers in this forward pass. A collective."""
        if self.group is not None and self._layers and self._checked:
            self._exchange(_END, torch.zeros((len(self.pieces), 2, 0), dtype=torch.float64, device=device))
            self._checked = device.type == "cpu"

    def _exchange(self, call: int, own: Tensor) -> Tensor:
        """What the team's workers have of the spans that they share: float64 [rows of the table, 2, channels].

        `call` names the layer and the pass. On a CPU, and in the first forward pass on a GPU (later the check would
        have to wait for the device), all messages have one size and end with `call`: workers that call different
        layers raise RecipeError, all of them, instead of waiting for each other.
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
            f"worker {first} is at {where[first]}, worker {other} at {where[other]}: batch norms whose spans lie on"
            " several workers must be called by all of them, in the same order",
            "a model that calls the same batch norms on every worker, or a span that lies on one worker",
        )

    def _describe(self, call: int) -> str:
        if call == _END:
            return "the end of the forward pass"
        return f"{self._layers[call // 2]} ({'backward' if call % 2 else 'forward'} pass)"


class _Table:
    """The layout of what a team's workers send each other: `num_slots` rows a worker, one for each shared piece.

    A worker shares at most the spans of its first and its last piece. Rows that a worker does not need are zero.
    """

    def __init__(self, team: Team, layout: BatchLayout, span: int) -> None:
        self._team, self._span = team, span
        by_rank = [pieces(layout.share(0, rank).own, span, team.positions.start) for rank in team.ranks]
        self._shared = [{i: piece for i, piece in enumerate(own) if piece.size < span} for own in by_rank]
        self.num_slots = max(map(len, self._shared))
        self._rows: list[Piece | None] = []
        for own in self._shared:
            self._rows += [*own.values(), *[None] * (self.num_slots - len(own))]

    def own(self, rank: int) -> dict[int, tuple[slice, Tensor]]:
        """For each piece of `rank` that is shared, by its number: the rows with all parts of its span (neighbours),
        and each part's fraction of the span's samples, float64 [rows, 1]; 0 for an empty row among them.
        """
        entries = {}
        for number, piece in self._shared[rank - self._team.ranks.start].items():
            parts = [i for i, part in enumerate(self._rows) if part is not None and part.row == piece.row]
            rows = slice(parts[0], parts[-1] + 1)
            sizes = [[0 if part is None else part.size] for part in self._rows[rows]]
            entries[number] = (rows, torch.tensor(sizes, dtype=torch.float64) / self._span)
        return entries


def _process_group(ranks: range, world_size: int) -> dist.ProcessGroup | None:
    """The group of `ranks`. Every worker must take part in creating every group, in the same order."""
    if len(ranks) == 1:
        return None
    if len(ranks) == world_size:
        return dist.group.WORLD
    group = dist.new_group(list(ranks))
    return group if isinstance(group, dist.ProcessGroup) else None  # a placeholder where this worker is not in it

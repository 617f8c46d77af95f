"""Where batch-norm spans lie: which workers share them, and which of this worker's samples belong to which.

A span is a fixed run of positions of the global batch, so neither the number of workers nor the split into
micro-batches changes what it holds. Every micro-batch is split over the workers in the same way: computed once.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from resnet_dist.shares import BatchLayout


@dataclass(frozen=True)
class Piece:
    """A run of this worker's samples that belong to one span: samples [start, stop) of the share."""

    row: int  # the span's row in the table that its team exchanges
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
    """

    def __init__(self, layout: BatchLayout, rank: int, span: int | Literal["global", "worker"]) -> None:
        self.batch_size = layout.size
        self.share_size = len(layout.share(0, rank).own)
        self.waited_s = 0.0  # in `all_reduce`: other workers' time, not this one's
        self.group: dist.ProcessGroup | None = None
        self.num_rows = 1
        self.span_size = self.share_size
        self.pieces: tuple[Piece, ...] = (Piece(0, 0, self.share_size, owned=True),)
        if span == "worker":
            return
        self.span_size = layout.micro_batch_size if span == "global" else span
        for team in teams(layout, self.span_size):
            group = _process_group(team.ranks, layout.world_size)
            if rank in team.ranks:
                self.group = group
                self.num_rows = len(team.positions) // self.span_size
                self.pieces = pieces(layout.share(0, rank).own, self.span_size, team.positions.start)

    def all_reduce(self, table: Tensor) -> None:
        """Sum `table` over the workers that share spans with this one. A collective."""
        started = time.perf_counter()
        dist.all_reduce(table, group=self.group)
        self.waited_s += time.perf_counter() - started


def _process_group(ranks: range, world_size: int) -> dist.ProcessGroup | None:
    """The group of `ranks`. Every worker must take part in creating every group, in the same order."""
    if len(ranks) == 1:
        return None
    if len(ranks) == world_size:
        return dist.group.WORLD
    group = dist.new_group(list(ranks))
    return group if isinstance(group, dist.ProcessGroup) else None  # a placeholder where this worker is not in it

"""How the spans of batch norm lie on the workers that share them: slices, and the rows that are exchanged."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.recipe.batch_layout import BatchLayout, SpanGroup

_NO_SAMPLES = 1e-300  # instead of a count of 0, by which torch's kernel would divide


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


class SpanTable:
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
        """For each slice of `rank` in a span on several workers, by number: the rows of that span and their samples.

        The rows are adjacent. The numbers of samples are float64 [rows], almost 0 for unused rows and those whose
        samples are all left out. `good`, bool [samples of the micro-batch], are the samples that count; None: all.
        """

        def size(positions: range) -> float:
            counted = len(positions) if good is None else int(good[positions.start : positions.stop].sum())
            return counted or _NO_SAMPLES

        entries = {}
        for number, span_slice in self._shared[rank - self._first_rank].items():
            parts = [i for i, row in enumerate(self._rows) if row is not None and row[0] == span_slice.row]
            rows = slice(parts[0], parts[-1] + 1)
            sizes = [_NO_SAMPLES if row is None else size(row[1]) for row in self._rows[rows]]
            entries[number] = (rows, torch.tensor(sizes, dtype=torch.float64))
        return entries

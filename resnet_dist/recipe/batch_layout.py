"""How the global batch is split: into micro-batches first, each of them over the workers.

Micro-batch m is a contiguous slice of the global batch. Each worker takes a contiguous part of it; the sizes of the
parts differ by at most one unit: a sample, or a pair of samples that are mixed with each other. Batch-norm spans are
fixed positions of the global batch, so neither the number of workers nor the number of micro-batches changes which
samples a span contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_dist.recipe.schema import Recipe

# The spans that `auto` considers. 64 is the span of configs/rn50_8node.yaml, from published runs with a batch of 8,192.
# Assumption: half or twice as many samples change the accuracy little.
WANTED_SPAN, LEAST_SPAN, LARGEST_SPAN = 64, 32, 128


def split(total: int, parts: int, part: int) -> range:
    """Positions of `part` when `total` are split into `parts` contiguous ranges whose sizes differ by at most one.

    >>> [len(split(37, 3, rank)) for rank in range(3)]
    [12, 12, 13]
    """
    return range(total * part // parts, total * (part + 1) // parts)


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch of `size` samples is split.

    There are `num_micro_batches` equal micro-batches (the number must divide `size`), each over `world_size` workers.
    `unit` samples, from a multiple of `unit` on, are always on one worker.
    """

    size: int
    num_micro_batches: int = 1
    world_size: int = 1
    unit: int = 1

    def __post_init__(self) -> None:
        if self.size % self.num_micro_batches:
            raise ValueError(f"{self.num_micro_batches} micro-batches do not divide a batch of {self.size}")
        if self.micro_batch_size % self.unit:
            raise ValueError(f"a micro-batch of {self.micro_batch_size} cannot be split into units of {self.unit}")
        if self.micro_batch_size // self.unit < self.world_size:
            raise ValueError(f"a micro-batch of {self.micro_batch_size} is too small for {self.world_size} workers")

    @classmethod
    def of(cls, recipe: Recipe, world_size: int) -> BatchLayout:
        """The layout of `recipe`; `num_micro_batches: auto` counts as 1."""
        return cls(recipe.batch.size, recipe.batch.parts, world_size, unit_of(recipe))

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch over all workers."""
        return self.size // self.num_micro_batches

    def worker_micro_batch(self, micro_batch: int, rank: int) -> range:
        """The positions in the global batch that worker `rank` takes of micro-batch number `micro_batch`."""
        start = micro_batch * self.micro_batch_size
        own = split(self.micro_batch_size // self.unit, self.world_size, rank)
        return range(start + own.start * self.unit, start + own.stop * self.unit)

    def worker_micro_batches(self, rank: int) -> Iterator[range]:
        """The positions that worker `rank` takes, one range per micro-batch."""
        return (self.worker_micro_batch(number, rank) for number in range(self.num_micro_batches))

    def boundaries(self) -> tuple[int, ...]:
        """Offsets in a micro-batch at which the positions of workers 1, 2, ... begin."""
        return tuple(self.worker_micro_batch(0, rank).start for rank in range(1, self.world_size))

    @property
    def smallest_part(self) -> int:
        """Samples of a micro-batch on the worker that has the fewest."""
        return self.micro_batch_size // self.unit // self.world_size * self.unit

    def spans_cross_workers(self, span: int) -> bool:
        """Whether any span of `span` samples is split over several workers."""
        return any(boundary % span for boundary in self.boundaries())


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


def unit_of(recipe: Recipe) -> int:
    """The number of neighbouring samples that a worker must have together: 2 if pairs are mixed, else 1."""
    return 2 if recipe.regularization.mixes_pairs else 1


def stream_step(step: int, skipped: Sequence[range]) -> int:
    """The step of the stream whose samples training step `step` (0 is the first) takes.

    `skipped` are the skipped ranges of the stream's steps, in ascending order.

    >>> [stream_step(step, [range(2, 5)]) for step in range(4)]
    [0, 1, 5, 6]
    """
    for run in skipped:
        if step >= run.start:
            step += len(run)
    return step


def allowed_spans(micro_batch_size: int) -> list[int]:
    """The divisors of a micro-batch's size, ascending."""
    small = [n for n in range(1, int(micro_batch_size**0.5) + 1) if micro_batch_size % n == 0]
    return sorted({*small, *(micro_batch_size // n for n in small)})


def automatic_span(micro_batch_size: int) -> int | Literal["global"]:
    """The span that `auto` selects: the divisor nearest to 64 from 32 to 128 (the smaller of two), else `global`.

    It does not depend on the number of workers.

    >>> automatic_span(8192), automatic_span(96), automatic_span(2 * 131)
    (64, 48, 'global')
    """
    by_distance = sorted(range(LEAST_SPAN, LARGEST_SPAN + 1), key=lambda span: (abs(span - WANTED_SPAN), span))
    return next((span for span in by_distance if micro_batch_size % span == 0), "global")

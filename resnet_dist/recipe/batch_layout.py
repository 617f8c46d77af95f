"""Who takes which positions of the global batch: micro-batches first, workers after.

Micro-batch m is a contiguous slice of the global batch; each micro-batch is split over the workers into contiguous
shares that differ by at most one sample. Batch-norm spans are fixed by positions of the global batch, so neither
the number of workers nor the split changes what a span holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

# The spans that `auto` looks for. 64 is that of configs/rn50_8node.yaml, from published runs with a batch of 8,192;
# half and twice as many are a guess at what changes the accuracy little.
WANTED_SPAN, LEAST_SPAN, LARGEST_SPAN = 64, 32, 128


def split(total: int, parts: int, part: int) -> range:
    """Positions of `part` when `total` are split into `parts` contiguous pieces that differ by at most one.

    >>> [len(split(37, 3, rank)) for rank in range(3)]
    [12, 12, 13]
    """
    return range(total * part // parts, total * (part + 1) // parts)


@dataclass(frozen=True)
class Share:
    """One worker's part of one micro-batch, in positions of the global batch (0 is the batch's first sample)."""

    micro_batch: range  # the whole micro-batch
    own: range  # this worker's contiguous part of it


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is cut.

    `size` samples in `num_micro_batches` equal micro-batches (`size` must divide), each over `world_size` workers.
    """

    size: int
    num_micro_batches: int = 1
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.size % self.num_micro_batches:
            raise ValueError(f"{self.num_micro_batches} micro-batches do not divide a batch of {self.size}")
        if self.micro_batch_size < self.world_size:
            raise ValueError(f"a micro-batch of {self.micro_batch_size} is too small for {self.world_size} workers")

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch over all workers."""
        return self.size // self.num_micro_batches

    def share(self, micro_batch: int, rank: int) -> Share:
        """What worker `rank` takes of micro-batch number `micro_batch`."""
        start = micro_batch * self.micro_batch_size
        own = split(self.micro_batch_size, self.world_size, rank)
        return Share(range(start, start + self.micro_batch_size), range(start + own.start, start + own.stop))

    def shares(self, rank: int) -> Iterator[Share]:
        """The shares of worker `rank`, one a micro-batch."""
        return (self.share(micro_batch, rank) for micro_batch in range(self.num_micro_batches))

    def boundaries(self) -> tuple[int, ...]:
        """Where one worker's part of a micro-batch ends and the next one's begins, from the micro-batch's start."""
        return tuple(split(self.micro_batch_size, self.world_size, rank).start for rank in range(1, self.world_size))

    def spans_cross_workers(self, span: int) -> bool:
        """Whether any span of `span` samples is shared by two workers."""
        return any(boundary % span for boundary in self.boundaries())


def stream_step(step: int, skipped: Sequence[range]) -> int:
    """The step of the stream whose samples training step `step` (0 is the first) takes.

    `skipped` are runs of the stream's steps that are left out, ascending; where there are none the two are the same.

    >>> [stream_step(step, [range(2, 5)]) for step in range(4)]
    [0, 1, 5, 6]
    """
    for run in skipped:
        if step >= run.start:
            step += len(run)
    return step


def allowed_spans(micro_batch_size: int) -> list[int]:
    """The spans that divide a micro-batch, ascending."""
    small = [n for n in range(1, int(micro_batch_size**0.5) + 1) if micro_batch_size % n == 0]
    return sorted({*small, *(micro_batch_size // n for n in small)})


def automatic_span(micro_batch_size: int) -> int | Literal["global"]:
    """The span that `auto` stands for: the divisor nearest 64 between 32 and 128, the smaller one of two.

    It is `global` where a micro-batch has no such divisor. The number of workers takes no part in it.

    >>> automatic_span(8192), automatic_span(96), automatic_span(2 * 131)
    (64, 48, 'global')
    """
    by_distance = sorted(range(LEAST_SPAN, LARGEST_SPAN + 1), key=lambda span: (abs(span - WANTED_SPAN), span))
    return next((span for span in by_distance if micro_batch_size % span == 0), "global")

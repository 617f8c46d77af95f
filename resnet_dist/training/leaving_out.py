"""Training steps without their broken samples.

A broken sample is removed from its micro-batch before the forward pass, so it is in no loss, count, batch-norm
statistic or pair of mixed images. Before a step, the workers tell each other how many of its samples are broken; if
none is, the step is an ordinary one.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from resnet_dist.data.loader import BadImage, HostBatch, LeftOut
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DataError
from resnet_dist.models.loss import LossSum
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.training.bad_images import BadImages


class LeavingOut:
    """Leaves broken samples out of the steps of one worker.

        batches = leaving_out.agreed(batches)         knows what is broken on all workers
        to_device = leaving_out.applied(to_device)    sets the spans of batch norm and the factor of the loss
        loss_sum = leaving_out.loss_sum(loss_sum)     times batch size / good samples of the step

    The engine divides the loss by the batch size, so its gradient is the mean over the good samples.
    """

    def __init__(
        self, bad: BadImages, layout: BatchLayout, rank: int, spans: Spans, device: torch.device, *, compiled: bool
    ) -> None:
        self._bad, self._layout, self._rank, self._spans, self._device = bad, layout, rank, spans, device
        self._compiled = compiled
        self._factor = 1.0

    def agreed(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """The micro-batches of whole steps, with `left_out` where any sample of the step is broken. A collective.

        All micro-batches of a step are decoded before the first one is yielded. Raises DataError if the run has met too
        many broken images, or if no sample of a step is good.
        """
        try:
            while step := list(islice(batches, self._layout.num_micro_batches)):
                started = time.perf_counter()
                found = self._bad.total(sum(len(batch.broken) for batch in step))
                self._spans.waited_s += time.perf_counter() - started
                waiting = deque(self._without(step) if found else step)
                step.clear()
                while waiting:
                    yield waiting.popleft()
        finally:
            if self._compiled:
                torch.compiler.set_stance("default")

    def _without(self, step: list[HostBatch]) -> list[HostBatch]:
        own: list[tuple[int, BadImage]] = []  # position in the global batch, image
        for number, batch in enumerate(step):
            first = self._layout.worker_micro_batch(number, self._rank).start
            images = self._bad.met(batch.broken.values())
            own += [(first + row, image) for row, image in zip(batch.broken, images, strict=True)]
        everywhere = self._bad.gather(own)
        self._bad.record(image for _, image in everywhere)
        good = np.ones(self._layout.size, dtype=np.bool_)
        good[[position for position, _ in everywhere]] = False
        if not good.any():
            first_image = everywhere[0][1]
            raise DataError(
                first_image.name,
                f"{first_image.problem}; so are all other images of a step: there is nothing to train on",
            )
        factor, size = len(good) / int(good.sum()), self._layout.micro_batch_size
        return [
            dataclasses.replace(batch, left_out=LeftOut(good[number * size : (number + 1) * size], factor))
            for number, batch in enumerate(step)
        ]

    def applied(self, to_device: Callable[[HostBatch], MicroBatch]) -> Callable[[HostBatch], MicroBatch]:
        """`to_device` that also prepares batch norm and the loss for the batch, which is then to be computed."""

        def prepare_and_move(batch: HostBatch) -> MicroBatch:
            left_out = batch.left_out
            if self._compiled and (left_out is None) != (self._factor == 1.0):
                # a new size would be compiled for minutes
                torch.compiler.set_stance("default" if left_out is None else "force_eager")
            self._spans.leave_out(None if left_out is None else left_out.good, self._device)
            self._factor = 1.0 if left_out is None else left_out.factor
            return to_device(batch)

        return prepare_and_move

    def loss_sum(self, loss_sum: LossSum) -> LossSum:
        """`loss_sum`, scaled for the present step."""

        def scaled(logits: Tensor, targets: Tensor) -> Tensor:
            if len(targets) == 0:
                return logits.sum()  # 0; a user's function may not expect that there are no samples
            loss = loss_sum(logits, targets)
            return loss if self._factor == 1.0 else loss * self._factor

        return scaled

"""The loop over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resnet_dist.engines.protocol import MicroBatch

# micro-batch, whether it is the step's last -> 0-d sum of its losses, 0-d number of correct predictions
RunMicroBatch = Callable[[MicroBatch, bool], tuple[Tensor, Tensor]]


def accumulate(
    micro_batches: Iterable[MicroBatch], num_micro_batches: int, device: torch.device, run: RunMicroBatch
) -> tuple[Tensor, Tensor]:
    """Call `run` for each micro-batch; return the sums of losses and of correct predictions, float64, 0-d, on `device`.

    Raises ValueError unless there are `num_micro_batches`: the gradients would be those of another batch, or would not
    have been exchanged.
    """
    loss, correct = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    number = 0
    for number, batch in enumerate(micro_batches, start=1):
        loss_sum, num_right = run(batch, number == num_micro_batches)
        loss += loss_sum
        correct += num_right
    if number != num_micro_batches:
        raise ValueError(f"a step has {num_micro_batches} micro-batches, got {number}")
    return loss, correct

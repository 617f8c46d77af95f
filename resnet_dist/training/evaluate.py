"""Evaluation in which every sample counts exactly once, on any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models.loss import cross_entropy_sum, num_correct, num_in_top_k, num_not_finite

TOP_K = 5  # of top5


@dataclass(frozen=True)
class Evaluation:
    """A model on a split: fractions of `num_samples` and the mean cross-entropy (without label smoothing).

    top1, top5 and loss are NaN if any sample has logits that are not finite: a fraction of the others would look like a
    valid result. In a run, top5 is also NaN if the model predicts no more than 5 classes: it would always be 1.
    """

    top1: float
    top5: float
    loss: float
    num_samples: int
    weights: Literal["model", "ema"] = "model"  # the last step's, or their exponential moving average
    num_nonfinite: int = 0  # samples with a logit that is infinite or NaN


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    num_samples: int,
    device: torch.device,
    autocast: Callable[[], torch.autocast] | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> Evaluation:
    """Evaluate `model` on this worker's `batches` and sum over all workers. A collective.

    `average` has tensors by names of parameters and buffers, which are used instead of the model's. The training mode
    of each module is restored, also after an exception. Raises RuntimeError unless the workers together have evaluated
    exactly `num_samples` samples.
    """
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # top-1, top-5, not finite, samples
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    with _evaluation_mode(model):
        for batch in batches:
            logits = _forward(model, batch.images, autocast, average)
            loss += cross_entropy_sum(logits, batch.labels)
            counts[0] += num_correct(logits, batch.labels)
            counts[1] += num_in_top_k(logits, batch.labels, TOP_K)
            counts[2] += num_not_finite(logits)
            counts[3] += len(batch.labels)
    if dist.is_initialized():
        dist.all_reduce(counts)
        dist.all_reduce(loss)
    top1, top5, nonfinite, seen = counts.tolist()
    if seen != num_samples:
        raise RuntimeError(f"evaluation saw {seen} samples of {num_samples}")
    weights: Literal["model", "ema"] = "model" if average is None else "ema"
    if nonfinite:
        return Evaluation(math.nan, math.nan, math.nan, seen, weights, nonfinite)
    return Evaluation(top1 / seen, top5 / seen, loss.item() / seen, seen, weights)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, then restore the mode of each module: the user may have frozen some."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # a user's `train` method may do more than set the attribute
        for module, training in modes:
            module.training = training


def _forward(
    model: nn.Module,
    images: Tensor,
    autocast: Callable[[], torch.autocast] | None,
    average: Mapping[str, Tensor] | None,
) -> Tensor:
    with nullcontext() if autocast is None else autocast():
        if average is None:
            return model(images)  # type: ignore[no-any-return]
        return functional_call(model, dict(average), (images,))  # type: ignore[no-any-return]

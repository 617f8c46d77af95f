"""Evaluation in which every sample counts exactly once, on any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.models.loss import cross_entropy_sum, num_correct, num_in_top_k, num_not_finite

TOP_K = 5  # of top5

Autocast = Callable[[], torch.autocast]
Weights = Literal["model", "ema"]
Metric = Callable[[Tensor, Tensor], Tensor]  # logits [n, classes], labels [n] -> floating [n]


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
    weights: Weights = "model"  # the last step's, or their exponential moving average
    num_nonfinite: int = 0  # samples with a logit that is infinite or NaN
    num_bad: int = 0  # samples whose images are broken, which are not among `num_samples`
    metrics: Mapping[str, float] = field(default_factory=dict)  # means of the user's metrics, by name
    train: Evaluation | None = None  # of the training split

    def record(self) -> dict[str, Any]:
        """The values in an eval record. `num_bad`, `metrics` and `train_...` only if there are any."""
        values = asdict(self)
        train, metrics = values.pop("train"), values.pop("metrics")
        if not self.num_bad:
            del values["num_bad"]
        if train is not None:
            values |= {"train_top1": train["top1"], "train_loss": train["loss"]}
            values |= {"train_num_bad": train["num_bad"]} if train["num_bad"] else {}
        return values | ({"metrics": metrics} if metrics else {})


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    num_samples: int,
    device: torch.device,
    autocast: Autocast | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    observe: Callable[[Tensor, Tensor], object] | None = None,
) -> Evaluation:
    """Evaluate `model` on this worker's `batches` and sum over all workers. A collective.

    Broken samples are left out and counted in `num_bad`.

    `tensors` are used instead of the model's parameters and buffers of these names. `metrics` are averaged over the
    samples. `observe` is called with the logits and labels of each batch, without broken samples. The training mode of
    each module is restored, also after an exception. Raises RuntimeError unless the workers together have had exactly
    `num_samples` samples, DataError if all of them are broken, and RecipeError for a metric that does not return [n].
    """
    metrics = {} if metrics is None else metrics
    counts = torch.zeros(5, dtype=torch.int64, device=device)  # top-1, top-5, not finite, samples, broken
    sums = torch.zeros(1 + len(metrics), dtype=torch.float64, device=device)  # loss, metrics
    with evaluation_mode(model):
        for batch in batches:
            if batch.num_broken:
                counts[4] += batch.num_broken
                if len(batch.labels) == 0:
                    continue
            logits = forward(model, batch.images, autocast, tensors)
            sums[0] += cross_entropy_sum(logits, batch.labels)
            for number, (name, metric) in enumerate(metrics.items(), start=1):
                sums[number] += values_of(name, metric, logits, batch.labels).sum(dtype=torch.float64)
            counts[0] += num_correct(logits, batch.labels)
            counts[1] += num_in_top_k(logits, batch.labels, TOP_K)
            counts[2] += num_not_finite(logits)
            counts[3] += len(batch.labels)
            if observe is not None:
                observe(logits, batch.labels)
    if dist.is_initialized():
        dist.all_reduce(counts)
        dist.all_reduce(sums)
    top1, top5, nonfinite, seen, bad = counts.tolist()
    if seen + bad != num_samples:
        raise RuntimeError(f"evaluation saw {seen + bad} samples of {num_samples}")
    if seen == 0:
        raise DataError("the evaluated images", f"all {bad:,} are broken: there is nothing to evaluate")
    loss, *others = sums.tolist()
    means = {name: total / seen for name, total in zip(metrics, others, strict=True)}
    if nonfinite:
        return Evaluation(math.nan, math.nan, math.nan, seen, "model", nonfinite, bad, dict.fromkeys(means, math.nan))
    return Evaluation(top1 / seen, top5 / seen, loss / seen, seen, num_bad=bad, metrics=means)


def values_of(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """The values of a user's metric: real numbers, [n].

    `logits` in half precision are converted to float32 first. Raises RecipeError for any other result.
    """
    wide = logits if logits.dtype is torch.float64 else logits.float()
    values: object = metric(wide, labels)
    if isinstance(values, Tensor) and values.shape == labels.shape and not values.is_complex():
        return values
    found = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else f"of type {type(values).__name__}"
    problem = f"{name} returned a value {found} for {len(labels)} samples"
    raise RecipeError("evaluate.metrics", problem, f"a tensor of shape [{len(labels)}]: one number per sample")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, then restore the mode of each module: the user may have frozen some."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # a user's `train` method may do more than set the attribute
        for module, training in modes:
            module.training = training


def forward(
    model: nn.Module, images: Tensor, autocast: Autocast | None, tensors: Mapping[str, Tensor] | None
) -> Tensor:
    """The model's logits, with `tensors` in place of its own parameters and buffers of these names."""
    with nullcontext() if autocast is None else autocast():
        if tensors is None:
            return model(images)  # type: ignore[no-any-return]
        return functional_call(model, dict(tensors), (images,))  # type: ignore[no-any-return]

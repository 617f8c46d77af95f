"""What an evaluation of a run consists of: the splits, the weights, batch norm's statistics, and the user's metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.references import function_for
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.evaluate import TOP_K, Autocast, Evaluation, Metric, evaluate, values_of
from resnet_dist.training.precise_batch_norm import PreciseBatchNorm


@dataclass(frozen=True)
class Split:
    """A split of the data set: its size, and a function that returns this worker's part of it."""

    num_samples: int
    batches: Callable[[], Iterable[MicroBatch]]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates a model after a step. A call is a collective."""

    model: nn.Module
    device: torch.device
    num_classes: int
    val: Split
    train: Split | None = None  # also evaluated
    autocast: Autocast | None = None
    average: Callable[[], Mapping[str, Tensor]] | None = None  # evaluated in place of the model's own weights
    precise: PreciseBatchNorm | None = None  # gives batch norm's statistics
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    bad: BadImages | None = None  # records the broken images that an evaluation finds

    def __call__(self, step: int) -> Evaluation:
        """The evaluation after `step` completed steps."""
        tensors = None if self.average is None else self.average()
        if self.precise is not None:
            tensors = {**(tensors or {}), **self.precise.statistics(step, tensors)}
        found = self._of(self.val, tensors, self.metrics)
        if self.train is not None:
            found = dataclasses.replace(found, train=self._of(self.train, tensors, {}))
        return found

    def _of(self, split: Split, tensors: Mapping[str, Tensor] | None, metrics: Mapping[str, Metric]) -> Evaluation:
        batches = split.batches()
        found = evaluate(self.model, batches, split.num_samples, self.device, self.autocast, tensors, metrics)
        if self.bad is not None and found.num_bad:
            self.bad.share()
        top5 = found.top5 if self.num_classes > TOP_K else math.nan
        return dataclasses.replace(found, top5=top5, weights="model" if self.average is None else "ema")


def load_metrics(references: Sequence[str], num_classes: int, device: torch.device) -> dict[str, Metric]:
    """The user's metrics by the names of their functions, each tried with two samples.

    Raises RecipeError for a function that cannot be loaded or called as a metric, or does not return one number per
    sample.
    """
    metrics: dict[str, Metric] = {}
    logits = torch.zeros((2, num_classes), device=device)
    labels = torch.tensor([0, 1], device=device)
    for reference in references:
        name = reference.partition(":")[2]
        metrics[name] = cast(Metric, function_for("evaluate.metrics", reference, logits, labels))
        values_of(name, metrics[name], logits, labels)
    return metrics

"""What an evaluation of a run consists of: the splits, the weights, batch norm's statistics, and the user's metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from resnet_dist.data import Index
from resnet_dist.data.loader import decoder_for, evaluation_batches
from resnet_dist.data.storage.files import files_of
from resnet_dist.engines.factory import autocast_dtype
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.references import function_for
from resnet_dist.recipe.schema import Recipe
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.device import ToDevice, Worker
from resnet_dist.training.ema import WeightAverage
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


def evaluator(
    recipe: Recipe,
    worker: Worker,
    model: nn.Module,
    splits: tuple[Index, Index],
    liveness: Liveness,
    average: WeightAverage | None,
    precise: Callable[[Autocast | None], PreciseBatchNorm],
    bad: BadImages | None = None,
) -> Evaluator:
    """Evaluates `model`, with the average of its weights if there is one. `splits`: training and val."""
    to_device = ToDevice(recipe, worker.device)
    data, size, dtype = recipe.evaluation_data, recipe.evaluate.batch_size, autocast_dtype(recipe)
    autocast = None if dtype is None else partial(torch.autocast, worker.device.type, dtype=dtype)

    decoder = decoder_for(  # one for all evaluations: a pipeline on a GPU takes seconds and gigabytes
        data,
        device=worker.device,
        num_threads=worker.num_threads,
        max_batch_size=size,
        regions=worker.decodes_regions,
    )

    def batches(index: Index) -> Iterator[MicroBatch]:
        found = evaluation_batches(index, files_of(index, data), worker.world_size, worker.rank, size, data, decoder)
        return map(to_device, liveness.beating(found if bad is None else bad.noted(found)))

    train, val = (Split(len(index), partial(batches, index)) for index in splits)
    return Evaluator(
        model=model,
        device=worker.device,
        num_classes=recipe.model.num_classes,
        val=val,
        train=train if recipe.evaluate.train else None,
        autocast=autocast,
        average=None if average is None else average.state,
        precise=precise(autocast) if recipe.evaluate.precise_batch_norm else None,
        bad=bad,
        metrics=load_metrics(recipe.evaluate.metrics, recipe.model.num_classes, worker.device),
    )


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

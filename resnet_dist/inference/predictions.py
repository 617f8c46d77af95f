"""What a model says about each image of a data set, and the evaluation, computed as a run computes its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from resnet_dist.data import Index
from resnet_dist.data.decoding import dali
from resnet_dist.data.decoding.region_check import region_check, warn_of
from resnet_dist.data.loader import HostBatch, decoder_for, evaluation_batches
from resnet_dist.data.storage.files import files_of
from resnet_dist.engines.factory import autocast_dtype
from resnet_dist.inference.trained import TrainedModel
from resnet_dist.recipe.schema import DataRecipe, Recipe
from resnet_dist.training.device import ToDevice, Worker, set_up_torch
from resnet_dist.training.evaluate import TOP_K, Autocast, Evaluation, evaluate, evaluation_mode, forward
from resnet_dist.training.evaluator import load_metrics

Progress = Callable[[int, int], object]  # images that are evaluated, of how many


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per image that is not broken, in the order of the index.

    rows           int64 [n], of the index
    labels         int64 [n]
    predicted      int64 [n], the class with the largest logit (the first of equals); -1 if a logit is not finite
    probabilities  float64 [n], of the predicted class; NaN if a logit is not finite
    of_labels      float64 [n], the probability of the label; NaN if a logit is not finite
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    of_labels: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """The rows of all `parts`, one part after the other."""
        names = [part.name for part in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class FlipAverage(nn.Module):
    """The mean of a model's probabilities for an image and for its mirror image, as logits.

    logits = log((softmax(f(x)) + softmax(f(flipped x))) / 2); Krizhevsky et al. 2012, section 4.1, average softmax
    outputs over crops and flips. Their softmax is the mean, so loss and calibration are those of the mean.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The logits of `images`, [n, 3, height, width]: float32 or float64 [n, classes]."""
        one, other = (_wide(self.model(shown)).log_softmax(1) for shown in (images, images.flip(3)))
        return torch.logaddexp(one, other) - math.log(2)


def evaluate_images(
    trained: TrainedModel, index: Index, worker: Worker, *, flip: bool = False, progress: Progress | None = None
) -> tuple[Evaluation, Predictions | None]:
    """The evaluation of `trained` on `index`, as a run has it, and on rank 0 the predictions. A collective.

    Images, batches, precision and the user's metrics are those of the recipe's evaluations; broken images are left out
    and counted. Each worker has its contiguous part, and the counts are summed: they do not depend on the number of
    workers. `flip`: with `FlipAverage`. Sets the number of torch's threads. Raises DataError if all images are broken,
    RecipeError for a metric that cannot be used.
    """
    recipe, device = _usable(trained.recipe), worker.device
    set_up_torch(recipe, device, worker.num_threads)
    model = _placed(trained.model, recipe, device)
    seen = _Seen(len(index), worker, progress)
    evaluation = evaluate(
        FlipAverage(model) if flip else model,
        map(ToDevice(recipe, device), seen.noted(_batches(recipe, index, worker))),
        len(index),
        device,
        _autocast(recipe, device),
        metrics=load_metrics(recipe.evaluate.metrics, recipe.model.num_classes, device),
        observe=seen.add,
    )
    top5 = evaluation.top5 if recipe.model.num_classes > TOP_K else math.nan
    return dataclasses.replace(evaluation, top5=top5, weights=trained.weights), seen.gathered(worker)


def probabilities_of(
    trained: TrainedModel, index: Index, worker: Worker
) -> Iterator[tuple[HostBatch, NDArray[np.float64]]]:
    """Batches of the images of `index`, and the probabilities of all classes: float64 [images not broken, classes].

    The images and logits are those of an evaluation with the same batches.
    """
    recipe, device = _usable(trained.recipe), worker.device
    set_up_torch(recipe, device, worker.num_threads)
    model, autocast = _placed(trained.model, recipe, device), _autocast(recipe, device)
    to_device = ToDevice(recipe, device)
    with torch.no_grad(), evaluation_mode(model):
        for batch in _batches(recipe, index, worker):
            if len(batch.broken) == len(batch.labels):
                yield batch, np.zeros((0, recipe.model.num_classes))
                continue
            logits = forward(model, to_device(batch).images, autocast, None)
            yield batch, _wide(logits).softmax(1).double().cpu().numpy()


def decodable(data: DataRecipe) -> DataRecipe:
    """`data` for images that are read where it may not have been trained: broken ones are left out, DALI is optional.

    The pixels before resizing do not depend on the decoder.
    """
    decoder = "auto" if data.decoder == "dali" and not dali.is_installed() else data.decoder
    return dataclasses.replace(data, on_error="replace", decoder=decoder)


def _usable(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, data=decodable(recipe.data))


def _placed(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The model on its device, in the memory layout of the recipe."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if recipe.speed.channels_last else model


def _batches(recipe: Recipe, index: Index, worker: Worker) -> Iterator[HostBatch]:
    data, size = recipe.evaluation_data, recipe.evaluate.batch_size
    check = region_check(data, worker.device)
    problem = None if check is None else check.problem
    if problem is not None:
        warn_of(problem)
    decoder = decoder_for(
        data,
        device=worker.device,
        num_threads=worker.num_threads,
        max_batch_size=size,
        regions=problem is None,
    )
    return evaluation_batches(index, files_of(index, data), worker.world_size, worker.rank, size, data, decoder)


def _autocast(recipe: Recipe, device: torch.device) -> Autocast | None:
    dtype = autocast_dtype(recipe)
    return None if dtype is None else partial(torch.autocast, device.type, dtype=dtype)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype is torch.float64 else logits.float()


class _Seen:
    """The predictions of this worker, collected batch by batch."""

    def __init__(self, num_samples: int, worker: Worker, progress: Progress | None) -> None:
        self._num_samples, self._num_workers = num_samples, worker.world_size
        self._progress = progress if worker.rank == 0 else None
        self._num_done = 0
        self._current: HostBatch | None = None
        self._parts = [Predictions(*(np.zeros(0, dtype) for dtype in (*[np.int64] * 3, *[np.float64] * 2)))]

    def noted(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
        """Yield `batches`; the last one is that whose logits come next."""
        for batch in batches:
            self._current = batch
            yield batch
            self._num_done += len(batch.labels)
            if self._progress is not None:  # the workers have equal parts
                self._progress(min(self._num_done * self._num_workers, self._num_samples), self._num_samples)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep what the logits say about the images of the last batch that are not broken."""
        assert self._current is not None
        wide = _wide(logits)
        finite = wide.isfinite().all(dim=1)
        probabilities = wide.softmax(1).double()
        largest, predicted = probabilities.max(dim=1)[0], wide.max(dim=1)[1]  # softmax may round to equal values
        of_labels = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        known = (value.where(finite, math.nan) for value in (largest, of_labels))
        columns = (labels, predicted.where(finite, -1), *known)
        rows = self._current.positions[self._current.good()].numpy()
        self._parts.append(Predictions(rows, *(column.cpu().numpy() for column in columns)))

    def gathered(self, worker: Worker) -> Predictions | None:
        """The predictions of all workers, on rank 0. A collective."""
        own = Predictions.joined(self._parts)
        if worker.world_size == 1:
            return own
        parts: list[Predictions] | None = [own] * worker.world_size if worker.rank == 0 else None
        dist.gather_object(own, parts)
        return None if parts is None else Predictions.joined(parts)

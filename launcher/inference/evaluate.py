"""Evaluate a checkpoint as its run evaluates: in this process alone, or as one worker of a process group."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from launcher.config import load as configs
from launcher.config.schema import ranks
from launcher.errors import LauncherError, UsageError
from launcher.inference.names import class_names, for_outputs
from launcher.inference.trained import Saved
from launcher.recovery.portable import portable
from resnet_dist.data import Index
from resnet_dist.data.index.table import compare_classes
from resnet_dist.errors import TrainingError
from resnet_dist.inference import TrainedModel, Weights
from resnet_dist.inference.images import Images, index_at, other_data, run_index, with_labels_of
from resnet_dist.inference.predictions import Predictions, decodable, evaluate_images
from resnet_dist.rank_zero import run_long_on_rank_0
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import LARGEST_IMAGE, whole
from resnet_dist.recipe.schema import DataRecipe, Recipe
from resnet_dist.training.device import Worker
from resnet_dist.training.evaluate import Evaluation

Progress = Callable[[str, int, int], object]  # what is done, how many images are, of how many


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated, beside the checkpoint."""

    data: str | None = None  # root of another data set; None: the val split of the run
    resolution: int | None = None  # None: that of the run's evaluations
    flip: bool = False  # also the mirror images: `resnet_dist.inference.predictions.FlipAverage`
    weights: Weights = "auto"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """An evaluation, with all that says what its numbers mean."""

    evaluation: Evaluation  # `record()` is what the run itself would record
    checkpoint: Path
    step: int  # completed steps
    weights: Literal["model", "ema"]
    data: DataRecipe  # what was read: root, source, resolution, evaluation_crop, ...
    precision: str
    flip: bool
    num_workers: int
    device: str
    precise_batch_norm: int  # steps whose batches the run's own evaluations use; here: running statistics
    images: Images | None  # with their classes; on rank 0
    predictions: Predictions | None  # on rank 0


def evaluate_checkpoint(
    saved: Saved,
    *,
    data: str | None = None,
    resolution: int | None = None,
    flip: bool = False,
    weights: Weights = "auto",
    num_threads: int | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Evaluate `saved` on the val split of its run, or on the data set at `data`.

    A process without a process group evaluates all images; else this is a collective, and each rank has its contiguous
    part. Counts are exact: they are the same on any number of workers, and the total is checked. With the number of
    workers and threads of the run, top-1, top-5 and loss are bit-equal to its own evaluation on a CPU. Differences:
    broken images are left out and counted also under `data.on_error: fail`, the training split is not evaluated, and
    batch norm has running statistics also under `evaluate.precise_batch_norm`. Nothing is written.

    `device`: by default the GPU of this local rank, or the CPU where there is none. `num_threads`: by default what the
    run's config gives a worker. Raises CheckpointError, DataError, RecipeError, UserCodeError for the user's model or
    metric, and UsageError for a wrong resolution.
    """
    request = Request(data=data, resolution=resolution, flip=flip, weights=weights)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = device_here() if device is None else device
    if num_threads is None:
        num_threads = threads_of(saved, world_size, device)
    worker = Worker(rank, world_size, device, num_threads)
    recipe = recipe_for(saved.recipe, request)
    trained = dataclasses.replace(model_of(saved, weights), recipe=recipe)
    find = partial(_images, saved, trained, request, progress)
    images = run_long_on_rank_0(find, rank, world_size)
    on_batch = None if progress is None else partial(progress, "evaluated")
    with user_code_errors(recipe):
        evaluation, predictions = evaluate_images(trained, images.index, worker, flip=flip, progress=on_batch)
    return Evaluated(
        evaluation=evaluation,
        checkpoint=saved.checkpoint,
        step=trained.step,
        weights=trained.weights,
        data=recipe.evaluation_data,
        precision=recipe.precision,
        flip=flip,
        num_workers=world_size,
        device=device.type,
        precise_batch_norm=recipe.evaluate.precise_batch_norm,
        images=images if rank == 0 else None,
        predictions=predictions,
    )


def model_of(saved: Saved, weights: Weights) -> TrainedModel:
    """The model of a checkpoint. Raises CheckpointError, RecipeError, or UsageError for an average that it lacks."""
    if weights == "ema" and saved.recipe.ema.decay is None:
        raise UsageError("--weights ema: the run has no moving average (ema.decay). Allowed: auto or model")
    with user_code_errors(saved.recipe):
        return saved.load(weights)


@contextlib.contextmanager
def user_code_errors(recipe: Recipe) -> Iterator[None]:
    """In the block, errors that are not this project's become UserCodeError if the model or a metric is a user's."""
    try:
        yield
    except (LauncherError, TrainingError):
        raise
    except Exception as error:
        if is_reference(recipe.model.name) or recipe.evaluate.metrics:
            raise portable(error) from error
        raise


def recipe_for(recipe: Recipe, request: Request) -> Recipe:
    """The recipe of an evaluation. Raises UsageError for a wrong resolution, DataError for a root that is no folder."""
    data, evaluate = decodable(recipe.data), recipe.evaluate
    if request.resolution is not None:
        holds, allowed = whole(8, LARGEST_IMAGE)
        if not holds(request.resolution):
            raise UsageError(f"--resolution {request.resolution}: Allowed: {allowed}")
        evaluate = dataclasses.replace(evaluate, resolution=request.resolution)
    if request.data is not None:
        data = other_data(data, request.data)
    return dataclasses.replace(recipe, data=data, evaluate=evaluate)


def device_here() -> torch.device:
    """The GPU of this local rank, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks().local_rank % torch.cuda.device_count())


def threads_of(saved: Saved, world_size: int, device: torch.device) -> int:
    """The threads of a worker: on a CPU those of the run, since sums depend on them; else its part of the CPUs here."""
    if saved.run is not None and device.type == "cpu":
        try:
            config = configs.load(saved.run.config, recorded=True)
        except (LauncherError, OSError):  # of another version: the recipe is that of the checkpoint
            config = None
        if config is not None and config.resources.gpus_per_worker == 0:
            return max(1, config.resources.cpus_per_worker * config.workers.most // world_size)
    return max(1, len(os.sched_getaffinity(0)) // world_size)


def _images(saved: Saved, trained: TrainedModel, request: Request, progress: Progress | None) -> Images:
    """The images to be evaluated, with the labels of the model."""
    data, num_classes = trained.recipe.data, trained.recipe.model.num_classes
    read = (lambda done, total: None) if progress is None else partial(progress, "headers read")
    if request.data is not None:
        index = index_at(data, read)
    elif saved.run is None:
        index = run_index(data, num_classes, None, None, read)
    else:
        index = run_index(data, num_classes, saved.run.index, saved.run.shared_index, read)
    return with_labels_of(_names(saved, trained, index), index)


def _names(saved: Saved, trained: TrainedModel, index: Index) -> tuple[str, ...]:
    num_classes = trained.recipe.model.num_classes
    names = class_names(saved, trained.classes)
    if not names:  # neither the checkpoint nor the run knows: the classes are taken to be those of the data
        compare_classes(index.root, index.classes, num_classes)
        names = index.classes
    return for_outputs(names, num_classes)


__all__ = ["Evaluated", "Request", "evaluate_checkpoint"]

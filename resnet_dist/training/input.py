"""The input of a training process: the two splits, and the micro-batches of the training split."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from resnet_dist.data import Index
from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.decoding.region_check import RegionCheck, warn_of
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.data.index.table import Kind
from resnet_dist.data.loader import HostBatch, decoder_for, training_batches
from resnet_dist.data.order import Order
from resnet_dist.data.sources.known_bad import known_names, with_known_bad
from resnet_dist.data.sources.subset import trained_on
from resnet_dist.data.storage.files import files_of
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.recipe.batch_layout import BatchLayout, stream_step
from resnet_dist.recipe.schema import DataRecipe, Recipe
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.device import Worker
from resnet_dist.training.leaving_out import LeavingOut


def splits_of(
    recipe: Recipe,
    worker: Worker,
    folder: Path,
    shared_folder: Path | None,
    *,
    resumed: bool,
    beat: Callable[[], None],
    tell: Callable[[Mapping[str, object]], None],
) -> tuple[Index, Index, BadImages | None]:
    """The images that the run trains on, those of the val split, and the broken ones, if there can be any.

    For the other arguments see `shared_indices`. A collective, which raises what it raises.
    """
    data, rank, world_size = recipe.data, worker.rank, worker.world_size
    num_classes = recipe.model.num_classes
    train, val = shared_indices(
        data, num_classes, rank, world_size, folder, shared_folder, resumed=resumed, beat=beat, tell=tell
    )
    known_bad: frozenset[str] = frozenset()
    if data.known_bad is not None:
        known_bad = run_on_rank_0(partial(known_names, data), rank, world_size)
        train, val = with_known_bad((train, val), known_bad, warn=rank == 0)
    train = trained_on(data, recipe.seed, train, rank)
    bad = None
    if data.on_error == "replace" or any(Kind.BROKEN in index.kinds for index in (train, val)):
        bad = BadImages(data, (train, val), known_bad)
    return train, val, bad


def checked_regions(worker: Worker, data: DataRecipe, check: RegionCheck | None) -> Worker:
    """`worker`, with whether its GPU decodes regions: only if those of all workers do. A collective.

    On a GPU, pixels at the edge of a region may depend on whether the rest of the image is decoded, and the pixels of a
    run must not depend on which worker has an image. `check` is that of `region_check`; rank 0 logs a problem.
    """
    if worker.device.type != "cuda" or data.decoder == "torchvision":
        return worker
    problems = [None if check is None else check.problem]
    if worker.world_size > 1:
        own, problems = problems[0], [None] * worker.world_size
        dist.all_gather_object(problems, own)
    found = [f"{problem} (rank {rank})" for rank, problem in enumerate(problems) if problem is not None]
    if found and worker.rank == 0:
        warn_of(found[0])
    return replace(worker, decodes_regions=not found)


def blank_batch(recipe: Recipe, num_samples: int) -> HostBatch:
    """A batch of the shapes of `training_input`, with black images of class 0."""
    size = recipe.data.resolution
    images = torch.zeros((num_samples, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    positions = torch.arange(num_samples)
    return HostBatch(images, torch.zeros_like(positions), positions, checksum=0)


def training_input(
    recipe: Recipe,
    worker: Worker,
    train: Index,
    order: Order,
    layout: BatchLayout,
    total_steps: int,
    skipped: tuple[tuple[int, int], ...],
    leaving_out: LeavingOut | None = None,
) -> Callable[[int], Generator[HostBatch, None, None]]:
    """A function that yields this worker's micro-batches from a given step on.

    Its calls share a decoder, which may be called again before an earlier call has ended.
    """
    left_out = [range(*run) for run in skipped]
    augmentation = augmentation_of(recipe.data, seed=recipe.seed, device=worker.device, num_threads=worker.num_threads)
    decoder = decoder_for(
        recipe.data,
        device=worker.device,
        num_threads=worker.num_threads,
        max_batch_size=len(layout.worker_micro_batch(0, worker.rank)),
        regions=worker.decodes_regions,
    )

    def batches_from(first_step: int) -> Generator[HostBatch, None, None]:
        steps = (stream_step(step, left_out) for step in range(first_step, total_steps))
        files = files_of(train, recipe.data)
        decoded = training_batches(
            train, files, order, layout, worker.rank, recipe.data, recipe.seed, decoder, steps, augmentation
        )
        with closing(decoded):
            yield from decoded if leaving_out is None else leaving_out.agreed(decoded)

    return batches_from

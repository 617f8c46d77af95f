"""The images of a step or of an evaluation: as their files have them, with their windows, and as the network sees them.

They come from a run's own loader, decoder, augmentation, erasing and mixing, so that they are those of the run.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.prepare.contact_sheet import Sample
from launcher.recovery.history import recorded_skips
from launcher.run.directory import RunDirectory
from launcher.worker.train import skipped_steps
from resnet_dist.data import BatchRequest, Index
from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.decoding.cpu import pillow_window
from resnet_dist.data.decoding.requests import Decoded, Decoder
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.data.loader import HostBatch, decoder_for, evaluation_batches, training_batches
from resnet_dist.data.order import order_of
from resnet_dist.data.sources.known_bad import known_names, with_known_bad
from resnet_dist.data.sources.subset import trained_on
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.batch_layout import BatchLayout, stream_step
from resnet_dist.recipe.schema import DataRecipe, Recipe
from resnet_dist.training.device import ToDevice

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shown:
    """Samples, and in words what changes their images."""

    samples: list[Sample]
    described: str


def splits(config: RunConfig) -> tuple[Index, Index]:
    """The images that the run trains on, and those that it evaluates. Raises the errors of the data.

    The index is the one that the runs of the storage share; it is made if there is none.
    """
    if config.data.source == "synthetic":
        raise RecipeError("data.source", "found synthetic, whose images are random pixels", "a source with images")
    data, shared = config.data, RunDirectory(Path(config.storage), config.name).shared_index
    with tempfile.TemporaryDirectory() as folder:
        indices = shared_indices(data, config.model.num_classes, 0, 1, Path(folder), shared, tell=_tell)
    train, val = indices if data.known_bad is None else with_known_bad(indices, known_names(data), warn=True)
    return trained_on(data, config.seed, train, rank=0), val


def _tell(detail: Mapping[str, Any]) -> None:
    print(detail["text"], file=sys.stderr, flush=True)


def trained(config: RunConfig, index: Index, step: int, rank: int, num: int) -> Shown:
    """The first `num` images that worker `rank` of the largest number of workers trains on in `step` (0 is the first).

    Windows of samples that the run has skipped are left out as in the run. Raises DataError for a broken image.
    """
    recipe = config.recipe()
    skips = recorded_skips(RunDirectory(Path(config.storage), config.name)) or ()
    left_out = [range(*part) for part in skipped_steps(skips, recipe.batch.size)]
    layout = BatchLayout.of(recipe, config.workers.most)
    decoder = _Recorder(_decoder(recipe.data, len(layout.worker_micro_batch(0, rank))))
    augmentation = augmentation_of(recipe.data, seed=recipe.seed, device=_CPU, num_threads=_num_threads())
    batches = training_batches(
        index,
        files_of(index, recipe.data),
        order_of(index, recipe.data, recipe.seed),
        layout,
        rank,
        recipe.data,
        recipe.seed,
        decoder,
        [stream_step(step, left_out)],
        augmentation,
    )
    samples = _samples(recipe, index, batches, decoder, num, training=True)
    return Shown(samples, ", ".join(_changes(recipe, decoder.requests[0].resolution)))


def evaluated(config: RunConfig, index: Index, rank: int, num: int) -> Shown:
    """The first `num` images of the val split that worker `rank` of the largest number of workers evaluates."""
    recipe = config.recipe()
    data, size = recipe.evaluation_data, min(num, recipe.evaluate.batch_size)
    decoder = _Recorder(_decoder(data, size))
    batches = evaluation_batches(index, files_of(index, data), config.workers.most, rank, size, data, decoder)
    samples = _samples(recipe, index, batches, decoder, num, training=False)
    return Shown(samples, f"{data.resolution} pixels, central crop {data.evaluation_crop:g}")


def _changes(recipe: Recipe, resolution: int) -> Iterator[str]:
    data, regularization = recipe.data, recipe.regularization
    yield f"{resolution} pixels"
    yield f"crop of {data.crop_area[0]:.4g} to {data.crop_area[1]:.4g} of the area"
    if data.flip:
        yield "flip"
    if data.color_jitter:
        yield f"color jitter {data.color_jitter:g}"
    if data.augmentation.name != "none":
        yield data.augmentation.name
    for name in ("mixup", "cutmix", "random_erasing"):
        if value := getattr(regularization, name):
            yield f"{name.replace('_', ' ')} {value:g}"


def _num_threads() -> int:
    return os.cpu_count() or 1


def _decoder(data: DataRecipe, max_batch_size: int) -> Decoder:
    return decoder_for(data, device=_CPU, num_threads=_num_threads(), max_batch_size=max_batch_size)


@dataclass
class _Recorder:
    """A decoder that keeps the requests that it has decoded."""

    decoder: Decoder
    requests: list[BatchRequest] = field(default_factory=list)

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        with closing(self.decoder.decode(requests)) as batches:
            for decoded in batches:
                self.requests.append(decoded.request)
                yield decoded


def _samples(
    recipe: Recipe, index: Index, batches: Iterator[HostBatch], recorder: _Recorder, num: int, *, training: bool
) -> list[Sample]:
    to_device = ToDevice(recipe, _CPU, training=training)
    found: list[Sample] = []
    for number, batch in enumerate(batches):
        wanted = min(num - len(found), len(batch.positions))
        whole_pairs = wanted + wanted % 2 if training else wanted  # pairs may be mixed
        some = _first(batch, min(whole_pairs, len(batch.positions)))
        seen = to_device(some)  # without the broken images
        good = zip(_pixels(seen.images, recipe.data), seen.labels, strict=True)
        request = recorder.requests[number]
        for row in range(wanted):
            pixels, label = (None, some.labels[row]) if row in some.broken else next(good)
            sample_id = int(request.sample_ids[row])
            found.append(
                Sample(
                    position=int(request.positions[row]),
                    sample_id=sample_id,
                    path=index.paths[sample_id],
                    classes=_parts(label, index.classes),
                    window=tuple(request.windows[row].tolist()),
                    flipped=bool(request.flips[row]),
                    original=_original(index, request, row),
                    seen=None if pixels is None else Image.fromarray(pixels),
                )
            )
        if len(found) == num:
            break
    return found


def _first(batch: HostBatch, num: int) -> HostBatch:
    """The first `num` samples of `batch`: a step's batch may have thousands."""
    columns = {part.name: getattr(batch, part.name) for part in dataclasses.fields(batch)}
    of_samples: dict[str, Any] = {name: column[:num] for name, column in columns.items() if isinstance(column, Tensor)}
    broken = {row: problem for row, problem in batch.broken.items() if row < num}
    return dataclasses.replace(batch, **of_samples, broken=broken)


def _pixels(images: Tensor, data: DataRecipe) -> NDArray[np.uint8]:
    """Normalised images [n, 3, height, width] as uint8 [n, height, width, 3]."""
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (data.mean, data.std))
    exact = (images.double() * std + mean) * 255
    return exact.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _parts(label: Tensor, classes: tuple[str, ...]) -> list[tuple[str, float]]:
    """The classes of an image and their parts, the largest first."""
    if not label.is_floating_point():
        return [(classes[int(label)], 1.0)]
    parts = [(classes[number], float(label[number])) for number in torch.nonzero(label).flatten().tolist()]
    return sorted(parts, key=lambda part: -part[1])


def _original(index: Index, request: BatchRequest, row: int) -> Image.Image | None:
    """The whole image of a sample; None if it is broken."""
    ids = request.sample_ids
    zeros = np.zeros(len(ids), np.int32)
    whole = np.stack([zeros, zeros, index.heights[ids], index.widths[ids]], axis=1)
    try:
        content, _ = request.encoded(row)
        return Image.fromarray(pillow_window(dataclasses.replace(request, windows=whole), row, content))
    except DataError:
        return None

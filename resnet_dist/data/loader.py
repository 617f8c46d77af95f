"""Micro-batches of images and labels for one worker."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data import crops, random_bits
from resnet_dist.data.augmentation import Augmentation
from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding import regions as decode_regions
from resnet_dist.data.decoding.choice import uses_dali
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import BatchRequest, Decoded, Decoder
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.ledger import Tallies, tallies_of
from resnet_dist.data.order import Order
from resnet_dist.data.sources.synthetic import SyntheticDecoder
from resnet_dist.data.storage.files import Files
from resnet_dist.recipe.batch_layout import BatchLayout, split
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)


class BadImage(NamedTuple):
    """An image that is left out: its name in the index, what is wrong with it, and the worker that found it."""

    name: str
    problem: str
    rank: int = 0


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What is left of a micro-batch and its step on all workers.

    good    bool [samples of the micro-batch on all workers]
    factor  batch size / good samples of the step
    """

    good: NDArray[np.bool_]
    factor: float

    @property
    def num(self) -> int:
        """The samples of the micro-batch that are left out."""
        return len(self.good) - int(self.good.sum())


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One worker's part of a micro-batch, decoded.

    images     uint8 [n, 3, height, width], channels-last; on the CPU, or on the GPU if DALI decoded them there
    labels     int64 [n], on the CPU
    positions  int64 [n], on the CPU: in the stream (training) or in the split (evaluation)
    checksum   of the samples and their positions; additive over workers and micro-batches
    tallies    of the samples, for the ledger
    broken     the samples to be left out, by their number; their images are black
    left_out   in training, of the micro-batch on all workers; None if all samples of the step are good
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    checksum: int
    tallies: Tallies = field(default_factory=dict)
    broken: Mapping[int, BadImage] = field(default_factory=dict)
    left_out: LeftOut | None = None

    def good(self) -> Tensor:
        """The numbers of the samples that are not broken: int64 [m], on the CPU."""
        numbers = [number for number in range(len(self.labels)) if number not in self.broken]
        return torch.tensor(numbers, dtype=torch.int64)


def training_batches(
    index: Index,
    files: Files,
    stream: Order,
    layout: BatchLayout,
    rank: int,
    recipe: DataRecipe,
    seed: int,
    decoder: Decoder,
    steps: Iterable[int],
    augmentation: Augmentation | None = None,
) -> Generator[HostBatch, None, None]:
    """The micro-batches of worker `rank` for `steps` of the stream, `layout.num_micro_batches` per step.

    Step k takes positions [kB, (k+1)B) of the stream, so a run can be resumed or resized at any step at no cost. The
    resolution is a function of k, too. Images are decoded ahead of the consumer. Raises DataError for an image that
    cannot be decoded.
    """
    resolutions = Resolutions.of(recipe, batch_size=layout.size, num_samples=len(index))

    def requests() -> Iterator[BatchRequest]:
        for step in steps:
            for own in layout.worker_micro_batches(rank):
                positions = step * layout.size + np.arange(own.start, own.stop, dtype=np.int64)
                ids = stream.sample_ids(positions)
                heights, widths = index.heights[ids], index.widths[ids]
                windows = crops.training_windows(heights, widths, positions, seed, recipe.crop_area, recipe.crop_aspect)
                flips = crops.flips(positions, seed) if recipe.flip else np.zeros(len(positions), dtype=np.bool_)
                yield BatchRequest.of(index, files, positions, ids, windows, flips, resolutions.at(step))

    return _decoded(index, requests(), decoder, recipe, augmentation)


def evaluation_batches(
    index: Index, files: Files, world_size: int, rank: int, batch_size: int, recipe: DataRecipe, decoder: Decoder
) -> Iterator[HostBatch]:
    """Worker `rank`'s contiguous part of a split, in order, in batches of at most `batch_size` samples.

    Over all workers every sample comes exactly once. If there are more workers than samples, some have no batch.
    """
    own = split(len(index), world_size, rank)

    def requests() -> Iterator[BatchRequest]:
        for start in range(own.start, own.stop, batch_size):
            ids = np.arange(start, min(start + batch_size, own.stop), dtype=np.int64)
            windows = crops.evaluation_windows(index.heights[ids], index.widths[ids], recipe.evaluation_crop)
            flips = np.zeros(len(ids), dtype=np.bool_)
            yield BatchRequest.of(index, files, ids, ids, windows, flips, recipe.resolution)

    return _decoded(index, requests(), decoder, recipe)


def _decoded(
    index: Index,
    requests: Iterator[BatchRequest],
    decoder: Decoder,
    recipe: DataRecipe,
    augmentation: Augmentation | None = None,
) -> Generator[HostBatch, None, None]:
    with ExitStack() as stack:
        batches = stack.enter_context(closing(decoder.decode(requests)))
        if augmentation is not None:
            batches = stack.enter_context(closing(augmentation(batches)))
        for decoded in batches:
            broken, request = _broken(index, decoded, recipe), decoded.request
            labels = torch.from_numpy(index.labels[request.sample_ids])
            checksum = random_bits.checksum(request.sample_ids, request.positions)
            tallies = tallies_of(request.sample_ids, request.positions, len(index))
            yield HostBatch(decoded.images, labels, torch.from_numpy(request.positions), checksum, tallies, broken)


def _broken(index: Index, decoded: Decoded, recipe: DataRecipe) -> dict[int, BadImage]:
    """The broken samples of a request, by their number.

    Under `data.on_error: fail`, raises the error of the first that is not known to be broken.
    """
    request, broken = decoded.request, {}
    for number, error in sorted(decoded.errors.items()):
        if recipe.on_error == "fail" and request.kinds[number] != Kind.BROKEN:
            raise error
        broken[number] = BadImage(index.paths[int(request.sample_ids[number])], error.problem)
    return broken


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """(images / 255 - mean) / std of uint8 [n, 3, height, width] as `dtype`, device and layout kept.

    Computed in float32 (in float64 if `dtype` is float64) and rounded to `dtype` once.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if not images.is_contiguous(memory_format=torch.channels_last):
        scaled_mean, scaled_std = _channels(mean, std, 1, exact, images.device)[:, :, None, None]
        return images.to(exact).sub_(scaled_mean).div_(scaled_std).to(dtype)
    # Whole rows of pixels: on a CPU, kernels are much faster than with three channels as the last dimension.
    rows = images.permute(0, 2, 3, 1).flatten(2)
    scaled_mean, scaled_std = _channels(mean, std, images.shape[3], exact, images.device)
    normalised = rows.to(exact).sub_(scaled_mean).div_(scaled_std).to(dtype)
    return normalised.view(*rows.shape[:2], -1, len(mean)).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _channels(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """255 × mean and 255 × std of `width` pixels, [2, 3 × width], on the device; cached: a copy waits for the GPU."""
    both = torch.tensor([mean, std], dtype=torch.float64) * 255
    return both.repeat(1, width).to(dtype).to(device)


def decoder_for(
    recipe: DataRecipe, *, device: torch.device, num_threads: int, max_batch_size: int, regions: bool = True
) -> Decoder:
    """The decoder that `recipe.decoder` names; `auto` is DALI on a GPU, and nvImageCodec with Pillow on a CPU.

    On a CPU the latter is faster: torch's resize takes a small part of the time of DALI's. What `auto` names and is not
    installed is left out, on a GPU with a warning; `dali` raises MissingPackage. `regions`: whether DALI may decode
    regions on the GPU, see `resnet_dist.data.decoding.region_check`.
    """
    if recipe.source == "synthetic":
        return SyntheticDecoder(device)
    on_gpu = device.type == "cuda"
    if uses_dali(recipe, on_gpu=on_gpu):
        device_id = None
        if on_gpu:
            device_id = torch.cuda.current_device() if device.index is None else device.index
        return decode_dali.DaliDecoder(num_threads, recipe.prefetch, max_batch_size, device_id, recipe.dali, regions)
    if recipe.decoder == "auto" and on_gpu:
        _warn_without_dali()
    by_regions = recipe.decoder == "auto" and decode_regions.version() is not None
    return CpuDecoder(num_threads, recipe.prefetch, by_regions, pinned=on_gpu)


@functools.cache
def _warn_without_dali() -> None:
    _log.warning(
        "data.decoder: auto: NVIDIA DALI is not installed, so the images are decoded on the CPU. "
        "Install DALI with: pip install 'resnet-launcher[dali]'"
    )

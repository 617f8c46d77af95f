"""Micro-batches for one worker: positions of the stream in, images and labels out."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data import crops, decode_dali, random_bits
from resnet_dist.data.decode_torchvision import TorchvisionDecoder
from resnet_dist.data.index import Index
from resnet_dist.data.order import Stream
from resnet_dist.data.requests import Decoder, Request
from resnet_dist.recipe.batch_layout import BatchLayout, split
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One worker's share of a micro-batch, as decoded.

    images     uint8 [share, 3, height, width], channels-last; on the CPU, or where DALI decoded them
    labels     int64 [share], on the CPU
    positions  int64 [share], on the CPU: of the stream (training) or of the split (evaluation)
    checksum   of which sample is at which position; adds up over the shares of a step
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    checksum: int


def training_batches(
    index: Index,
    stream: Stream,
    layout: BatchLayout,
    rank: int,
    recipe: DataRecipe,
    seed: int,
    decoder: Decoder,
    steps: Iterable[int],
) -> Iterator[HostBatch]:
    """The shares of worker `rank` for `steps` of the stream, `layout.num_micro_batches` a step.

    Step k takes positions [kB, (k+1)B) of the stream, so a run that is resumed or resized starts anywhere at no cost
    and sees what it would have seen. Images are decoded lazily, ahead of the consumer. DataError for a broken image.
    """

    def positions() -> Iterator[NDArray[np.int64]]:
        for step in steps:
            for share in layout.shares(rank):
                start = step * layout.size
                yield np.arange(start + share.own.start, start + share.own.stop, dtype=np.int64)

    def request(positions: NDArray[np.int64]) -> Request:
        ids = stream.sample_ids(positions)
        heights, widths = index.heights[ids], index.widths[ids]
        windows = crops.training_windows(heights, widths, positions, seed, recipe.crop_area, recipe.crop_aspect)
        flips = crops.flips(positions, seed) if recipe.flip else np.zeros(len(positions), dtype=np.bool_)
        return Request.of(index, ids, windows, flips)

    return _decoded(index, positions(), request, decoder, recipe.resolution)


def evaluation_batches(
    index: Index, world_size: int, rank: int, batch_size: int, recipe: DataRecipe, decoder: Decoder
) -> Iterator[HostBatch]:
    """Worker `rank`'s contiguous part of a split, in order, `batch_size` samples at a time (the last has the rest).

    Over all workers every sample comes exactly once. A worker has no batch at all where there are more workers than
    samples.
    """
    own = split(len(index), world_size, rank)

    def positions() -> Iterator[NDArray[np.int64]]:
        for start in range(own.start, own.stop, batch_size):
            yield np.arange(start, min(start + batch_size, own.stop), dtype=np.int64)

    def request(ids: NDArray[np.int64]) -> Request:
        windows = crops.evaluation_windows(index.heights[ids], index.widths[ids], recipe.evaluation_crop)
        return Request.of(index, ids, windows, np.zeros(len(ids), dtype=np.bool_))

    return _decoded(index, positions(), request, decoder, recipe.resolution)


def _decoded(
    index: Index,
    batches: Iterable[NDArray[np.int64]],
    request_of: Callable[[NDArray[np.int64]], Request],
    decoder: Decoder,
    resolution: int,
) -> Iterator[HostBatch]:
    """Join what a decoder gives with what was asked for; the decoder asks ahead of what it gives."""
    asked: deque[tuple[NDArray[np.int64], Request]] = deque()

    def requests() -> Iterator[Request]:
        for positions in batches:
            request = request_of(positions)
            asked.append((positions, request))
            yield request

    with closing(decoder.decode(requests(), resolution)) as decoded:
        for images in decoded:
            positions, request = asked.popleft()
            labels = torch.from_numpy(index.labels[request.sample_ids])
            checksum = random_bits.checksum(request.sample_ids, positions)
            yield HostBatch(images, labels, torch.from_numpy(positions), checksum)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """(images / 255 - mean) / std of uint8 [n, 3, height, width] as `dtype`, on the images' device, layout kept.

    Computed in float32 (float64 if that is `dtype`) and rounded to `dtype` once.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    scaled_mean, scaled_std = _channels(mean, std, exact, images.device)
    return images.to(exact).sub_(scaled_mean).div_(scaled_std).to(dtype)


@functools.lru_cache(maxsize=16)
def _channels(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """255 × mean and 255 × std, [3, 1, 1], on the device: copied there once, since a copy waits for the GPU."""
    both = torch.tensor([mean, std], dtype=torch.float64) * 255
    scaled = both.to(dtype).to(device)[:, :, None, None]
    return scaled[0], scaled[1]


def decoder_for(recipe: DataRecipe, *, device: torch.device, num_threads: int, max_batch_size: int) -> Decoder:
    """The decoder that `recipe.decoder` names; `auto` is DALI where there is a GPU and torchvision on a CPU.

    On a CPU torchvision is the faster one: its resize takes a third of the time of DALI's. With a GPU but no DALI,
    `auto` falls back to torchvision and says so once. MissingPackage if `dali` is named and not installed.
    """
    on_gpu = device.type == "cuda"
    wants_dali = recipe.decoder == "dali" or (recipe.decoder == "auto" and on_gpu)
    if recipe.decoder == "auto" and on_gpu and not decode_dali.is_installed():
        _warn_without_dali()
        wants_dali = False
    if not wants_dali:
        return TorchvisionDecoder(num_threads, recipe.prefetch)
    device_id = None
    if on_gpu:
        device_id = torch.cuda.current_device() if device.index is None else device.index
    return decode_dali.DaliDecoder(num_threads, recipe.prefetch, max_batch_size, device_id)


@functools.cache
def _warn_without_dali() -> None:
    _log.warning(
        "data.decoder: auto: NVIDIA DALI is not installed, so images are decoded on the CPU with torchvision; "
        "install it with: pip install 'resnet-launcher[dali]'"
    )

"""A worker's device: the setup of torch, random generators, and copying of batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data import random_bits
from resnet_dist.data.erasing import RandomErasing
from resnet_dist.data.loader import HostBatch, normalise
from resnet_dist.data.mixing import PairMixing
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.schema import Recipe


@dataclass(frozen=True)
class Worker:
    """One training process: its rank and its device."""

    rank: int
    world_size: int
    device: torch.device
    num_threads: int  # for decoding, and for torch on a CPU
    largest_world_size: int | None = None  # of an elastic run
    decodes_regions: bool = True  # whether DALI may decode regions of images on the GPU


def set_up_torch(recipe: Recipe, device: torch.device, num_threads: int) -> None:
    """Set the number of threads on a CPU; on a GPU precision, algorithms and determinism."""
    if device.type == "cpu":
        torch.set_num_threads(num_threads)  # results of sums depend on it, so it must not depend on the machine
        return
    torch.cuda.set_device(device)
    precision = "tf32" if recipe.precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = recipe.speed.cudnn_benchmark and not recipe.deterministic
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_generators(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's generators of this process for a step (0 is the first), by a hash of (seed, step, rank).

    Random numbers of a user's modules (`nn.Dropout`) are then the same in every run on the same number of workers, with
    or without evaluations and restarts in between.
    """
    states = random_bits.states(seed, np.array([step]), random_bits.Purpose.MODEL)
    number = int(random_bits.element(states, np.array([rank], dtype=np.uint64))[0])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


class Change(Protocol):
    """A random change of normalised images and their labels. Its numbers are drawn on the host."""

    def draw(self, positions: NDArray[np.int64], height: int, width: int) -> NDArray[np.float64]:
        """Draw numbers for images of `height` × `width` pixels at `positions`, [n], of the stream: float64 [n, k]."""
        ...

    def separate(self, drawn: NDArray[np.float64], broken: Collection[int]) -> None:
        """Change the numbers of `draw` so that no image depends on the `broken` samples, given by number."""
        ...

    def apply(self, images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Change images and labels on their device with the numbers of `draw`; `images` may be overwritten."""
        ...


def _changes(recipe: Recipe) -> Iterator[Change]:
    regularization = recipe.regularization
    if regularization.random_erasing > 0:
        yield RandomErasing(regularization.random_erasing, recipe.seed)
    if regularization.mixes_pairs:
        yield PairMixing(regularization.mixup, regularization.cutmix, recipe.model.num_classes, recipe.seed)


class ToDevice:
    """Copies a batch to the device and normalises it there; on a GPU from pinned memory, in a separate stream.

    The images of a decoder on the CPU are in pinned memory already; labels and random numbers are pinned here.
    In `training`, images are then erased and mixed as the recipe says. The copy runs while the GPU still computes the
    previous step. The computation waits for it, the host does not.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, training: bool = False) -> None:
        self._mean, self._std = recipe.data.mean, recipe.data.std
        self._dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self._changes = list(_changes(recipe)) if training else []
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu and recipe.speed.copy_stream else None

    def __call__(self, batch: HostBatch) -> MicroBatch:
        """`batch` on the device, normalised and without broken samples; in training also erased and mixed."""
        images, labels = batch.images, batch.labels
        positions, size = batch.positions.numpy(), images.shape[2:]
        drawn = [change.draw(positions, *size) for change in self._changes]
        for change, numbers in zip(self._changes, drawn, strict=True):
            if batch.broken:
                change.separate(numbers, batch.broken)
        others = [*map(torch.from_numpy, drawn), *([batch.good()] if batch.broken else [])]
        if self._stream is not None:
            current = torch.cuda.current_stream()
            with torch.cuda.stream(self._stream):
                images, labels, *others = map(self._moved, (images, labels, *others))
            current.wait_stream(self._stream)
            for tensor in (images, labels, *others):
                tensor.record_stream(current)  # its memory is not reused before the computation has read it
        else:
            images, labels, *others = map(self._moved, (images, labels, *others))
        images = normalise(images, self._mean, self._std, self._dtype)
        for change, given in zip(self._changes, others, strict=not batch.broken):
            images, labels = change.apply(images, labels, given)
        if batch.broken:
            good = others[-1]
            images, labels = images[good].contiguous(memory_format=torch.channels_last), labels[good]
        return MicroBatch(images, labels, len(batch.broken))

    def _moved(self, tensor: Tensor) -> Tensor:
        if not self._on_gpu or tensor.is_cuda:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

"""A worker's device: the setup of torch, random generators, and copying of batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnet_dist.data import random_bits
from resnet_dist.data.loader import HostBatch, normalise
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.schema import Recipe


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


class ToDevice:
    """Copies a batch to the device and normalises it there; on a GPU from pinned memory, in a separate stream.

    The copy runs while the GPU still computes the previous step. The computation waits for it, the host does not.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._mean, self._std = recipe.data.mean, recipe.data.std
        self._dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu and recipe.speed.copy_stream else None

    def __call__(self, batch: HostBatch) -> MicroBatch:
        """`batch` on the device, normalised."""
        images, labels = batch.images, batch.labels
        if self._stream is not None:
            current = torch.cuda.current_stream()
            with torch.cuda.stream(self._stream):
                images, labels = self._moved(images), self._moved(labels)
            current.wait_stream(self._stream)
            for tensor in (images, labels):
                tensor.record_stream(current)  # its memory is not reused before the computation has read it
        else:
            images, labels = self._moved(images), self._moved(labels)
        return MicroBatch(normalise(images, self._mean, self._std, self._dtype), labels)

    def _moved(self, tensor: Tensor) -> Tensor:
        if not self._on_gpu or tensor.is_cuda:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

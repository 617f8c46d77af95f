"""A worker's device: how torch is set up for it, and how images get there."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from resnet_dist.data import HostBatch, normalise, random_bits
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.schema import Recipe


def set_up_torch(recipe: Recipe, device: torch.device, num_threads: int) -> None:
    """Threads on a CPU; on a GPU precision, algorithms and determinism, as the recipe has them."""
    if device.type == "cpu":
        torch.set_num_threads(num_threads)  # sums depend on it: the run's own number, not the machine's
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

    What a user's modules draw in a step (`nn.Dropout`) is then the same in every run on as many workers, whatever was
    drawn before: by an evaluation, or by the steps of an attempt that is repeated.
    """
    states = random_bits.states(seed, np.array([step]), random_bits.Purpose.MODEL)
    number = int(random_bits.element(states, np.array([rank], dtype=np.uint64))[0])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def own_cpus(allowed: Sequence[int], local_rank: int, local_world_size: int) -> list[int]:
    """The CPUs of a node's worker number `local_rank`: neighbours, as many for each, all where there is less than one.

    >>> own_cpus([0, 1, 2, 3, 8, 9], local_rank=1, local_world_size=3)
    [2, 3]
    """
    each = len(allowed) // local_world_size
    ordered = sorted(allowed)
    return ordered[local_rank * each : (local_rank + 1) * each] if each else ordered


def pin_to_cpus(local_rank: int, local_world_size: int, num_threads: int) -> list[int]:
    """Keep this process on CPUs of its own, if they are enough for its threads; returns those it may use now.

    Threads and processes that it starts later are kept there too. Where the system offers no affinity (macOS) or the
    node has too few CPUs, nothing changes.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    own = own_cpus(allowed, local_rank, local_world_size)
    if local_world_size > 1 and num_threads <= len(own) < len(allowed):
        os.sched_setaffinity(0, own)
        return own
    return allowed


class ToDevice:
    """Moves a batch to the device and normalises it there; on a GPU from pinned memory, in a stream of its own.

    The stream lets the copy run while the GPU still computes the step before; the computation waits for it, the host
    does not.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._mean, self._std = recipe.data.mean, recipe.data.std
        self._dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu and recipe.speed.copy_stream else None

    def __call__(self, batch: HostBatch) -> MicroBatch:
        """`batch` as the engine takes it."""
        images, labels = batch.images, batch.labels
        if self._stream is not None:
            current = torch.cuda.current_stream()
            with torch.cuda.stream(self._stream):
                images, labels = self._moved(images), self._moved(labels)
            current.wait_stream(self._stream)
            for tensor in (images, labels):
                tensor.record_stream(current)  # its memory is not given away before the computation has read it
        else:
            images, labels = self._moved(images), self._moved(labels)
        return MicroBatch(normalise(images, self._mean, self._std, self._dtype), labels)

    def _moved(self, tensor: Tensor) -> Tensor:
        if not self._on_gpu or tensor.is_cuda:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

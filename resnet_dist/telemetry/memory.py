"""The memory of a step on a worker, and the number of micro-batches with which it fits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_dist.errors import OutOfMemory
from resnet_dist.models import build_model
from resnet_dist.recipe.batch_layout import split, unit_of
from resnet_dist.recipe.network_memory import HEADROOM
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import Recipe


def num_micro_batches_that_fit(
    recipe: Recipe, world_size: int, limit_bytes: int, largest_world_size: int | None = None
) -> int | None:
    """The smallest larger number of micro-batches that is allowed and fits into `limit_bytes` on every worker.

    None if there is none. A number is allowed if it divides the batch, keeps whole batch-norm spans and pairs of mixed
    samples, and gives every worker a sample, also on `largest_world_size` workers.
    """
    static_bytes, sample_bytes = step_bytes(recipe)
    for count in allowed_micro_batches(recipe, max(world_size, largest_world_size or 0)):
        num_samples = len(split(recipe.batch.size // count, world_size, 0))
        if count > recipe.batch.parts and static_bytes + sample_bytes * num_samples <= limit_bytes:
            return count
    return None


def allowed_micro_batches(recipe: Recipe, world_size: int) -> list[int]:
    """The numbers of micro-batches that do not change the results of `recipe` on `world_size` workers, ascending."""
    size, span, unit = recipe.batch.size, settled(recipe).batch_norm.fixed_span, unit_of(recipe)
    if recipe.model.normalisation == "none":
        span = 1  # no sample depends on another one
    if span == "global":
        return [1]
    if span == "worker":  # the spans depend on the number of micro-batches
        return [recipe.batch.parts]
    return [
        count
        for count in range(1, size // world_size + 1)
        if size % count == 0
        and (size // count) % span == (size // count) % unit == 0
        and size // count // unit >= world_size
    ]


def step_bytes(recipe: Recipe) -> tuple[int, int]:
    """The bytes that a worker needs in a step independent of its number of samples, and the bytes per sample.

    The former are weights, gradients, optimizer state and the average of the weights. The latter are the tensors that
    autograd saves for the backward pass at the largest resolution of training, counted on a copy of the model on the
    meta device, times a factor for other memory. A user's optimizer may have more state than is counted.
    """
    # The file of `model.weights` need not exist.
    model = build_model(dataclasses.replace(recipe.model, weights=None), recipe.seed)
    width = torch.float64 if recipe.precision == "float64" else torch.float32
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 + recipe.optimizer.num_states
    copies += recipe.ema.decay is not None
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
    saved = _saved_bytes(model, max(recipe.data.training_resolutions), half or width)
    return num_elements * width.itemsize * copies, int(saved * HEADROOM)


def _saved_bytes(model: nn.Module, resolution: int, dtype: torch.dtype) -> int:
    """Bytes that autograd saves for one more image."""

    def of(num_images: int) -> int:
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storages[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            kept.append(tensor)  # so that its id is not reused
            return tensor

        kept: list[Tensor] = []
        images = torch.empty(num_images, 3, resolution, resolution, dtype=dtype, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            on_meta(images)
        return sum(storages.values())

    on_meta = model.to(device="meta", dtype=dtype).train()
    return of(3) - of(2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a device or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def translate_oom(
    error: BaseException,
    recipe: Recipe,
    world_size: int,
    device: torch.device,
    largest_world_size: int | None = None,
) -> OutOfMemory | None:
    """An OutOfMemory with the number of micro-batches that would fit; None if `error` is another error."""
    if not is_out_of_memory(error):
        return None
    first_line = str(error).partition("\n")[0]
    count = num_micro_batches_that_fit(recipe, world_size, limit_bytes(device), largest_world_size)
    return OutOfMemory(recipe.batch.parts, count, first_line)


def used_bytes() -> dict[str, int]:
    """The memory of this process, as in a train record: of the host now, and the most so far of its GPU, if it has one.

    Takes some microseconds.
    """
    found = {}
    with contextlib.suppress(OSError):  # not on macOS
        found["memory_bytes"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if torch.cuda.is_initialized():
        found["gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return found


def limit_bytes(device: torch.device) -> int:
    """The memory of a GPU, or the host memory that this process may use (with its control group's limit)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [2**63 - 1]
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" is not a number: no limit
    with contextlib.suppress(OSError, ValueError, IndexError):
        total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        limits.append(int(total.split()[1]) * 1024)
    return min(limits)

"""How much memory a step takes on a worker, and into how many micro-batches it must be cut to fit."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_dist.errors import OutOfMemory
from resnet_dist.models import build_model
from resnet_dist.recipe.batch_layout import split
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import Recipe

# On top of what is saved for the backward pass: gradients of two layers at a time, workspaces, fragments.
# An assumption; on a GPU the next attempt measures whether it was enough.
_HEADROOM = 1.2
_MIB = 2**20


def num_micro_batches_that_fit(
    recipe: Recipe, world_size: int, limit_bytes: int, largest_world_size: int | None = None
) -> int | None:
    """The smallest number of micro-batches above the present one that the recipe allows and that fits into
    `limit_bytes` on every worker; None where no number does.

    A number is allowed if it divides the batch, leaves whole batch-norm spans, and gives every worker a sample; also
    when the run has grown to `largest_world_size` workers.
    """
    static_bytes, sample_bytes = step_bytes(recipe)
    for count in allowed_micro_batches(recipe, max(world_size, largest_world_size or 0)):
        share = len(split(recipe.batch.size // count, world_size, 0))
        if count > recipe.batch.parts and static_bytes + sample_bytes * share <= limit_bytes:
            return count
    return None


def allowed_micro_batches(recipe: Recipe, world_size: int) -> list[int]:
    """The numbers of micro-batches that change no result of `recipe` on `world_size` workers, ascending."""
    size, span = recipe.batch.size, settled(recipe).batch_norm.fixed_span
    if span == "global":
        return [1]
    if span == "worker":  # its spans are the micro-batches' shares: another number is another recipe
        return [recipe.batch.parts]
    return [
        count
        for count in range(1, size // world_size + 1)
        if size % count == 0 and (size // count) % span == 0 and size // count >= world_size
    ]


def step_bytes(recipe: Recipe) -> tuple[int, int]:
    """Bytes that a worker holds in a step whatever its share, and bytes for each sample of its share.

    The first are weights, gradients, momentum and the weights' average; the second what autograd saves for the backward
    pass, counted on a copy of the model without memory, and headroom.
    """
    # Weights to start from take no other memory, and need not be there to plan.
    model = build_model(dataclasses.replace(recipe.model, weights=None), recipe.seed)
    width = torch.float64 if recipe.precision == "float64" else torch.float32
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    copies = 3 if recipe.optimizer.momentum else 2  # an optimizer of the user's own may hold more
    copies += recipe.ema.decay is not None
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
    saved = _saved_bytes(model, recipe.data.resolution, half or width)
    return num_elements * width.itemsize * copies, int(saved * _HEADROOM)


def _saved_bytes(model: nn.Module, resolution: int, dtype: torch.dtype) -> int:
    """What autograd keeps for one more image."""

    def of(num_images: int) -> int:
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storages[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            kept.append(tensor)  # so that no later storage gets its id
            return tensor

        kept: list[Tensor] = []
        images = torch.empty(num_images, 3, resolution, resolution, dtype=dtype, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            weightless(images)
        return sum(storages.values())

    weightless = model.to(device="meta", dtype=dtype).train()
    return of(3) - of(2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def explain(
    error: BaseException,
    recipe: Recipe,
    world_size: int,
    device: torch.device,
    largest_world_size: int | None = None,
) -> OutOfMemory | None:
    """How many micro-batches would fit, where `error` says that memory ran out; None for any other error."""
    if not is_out_of_memory(error):
        return None
    first_line = str(error).partition("\n")[0]
    count = num_micro_batches_that_fit(recipe, world_size, limit_bytes(device), largest_world_size)
    return OutOfMemory(recipe.batch.parts, count, first_line)


def limit_bytes(device: torch.device) -> int:
    """The memory of a GPU, or what a process may have of the host's (its control group's limit, if it has one)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [2**63 - 1]
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" is no number: no limit
    with contextlib.suppress(OSError, ValueError, IndexError):
        total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        limits.append(int(total.split()[1]) * 1024)
    return min(limits)

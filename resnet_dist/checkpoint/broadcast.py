"""Load a checkpoint on every worker: one of them has it, or reads it, and broadcasts it.

If every worker read it, the storage would be read as many times as there are workers, at the moment when all of them
start; a checkpoint in parts would have as many files opened as there are workers squared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.rank_zero import run_on_rank


def load_and_broadcast(path: Path, rank: int, world_size: int, device: torch.device) -> CheckpointContent:
    """Return the content of the checkpoint in the folder `path`, on the CPU, on every worker. A collective.

    `device` is where the process group takes tensors from. A CheckpointError of rank 0 is raised on every worker.
    """
    return broadcast(lambda: restore.load(path).content(), 0, rank, world_size, device)


def broadcast(
    content: Callable[[], CheckpointContent], source: int, rank: int, world_size: int, device: torch.device
) -> CheckpointContent:
    """Return what `content` returns on the worker `source`, on the CPU, on every worker. A collective.

    `device` is where the process group takes tensors from. A TrainingError of `content` is raised on every worker.
    """
    if world_size == 1:
        return content()
    loaded: list[CheckpointContent] = []  # on the source

    def shapes() -> CheckpointContent:
        loaded.append(content())
        return loaded[0].map(lambda tensor: tensor.to("meta"))  # shapes and dtypes only

    header = run_on_rank(source, shapes, rank, world_size)
    own = loaded[0] if loaded else header.map(lambda tensor: torch.empty_like(tensor, device="cpu"))
    return own.map(partial(_broadcast, source, device))


def _broadcast(source: int, device: torch.device, tensor: Tensor) -> Tensor:
    """Return the `tensor` of the worker `source`, on the CPU. It is sent as bytes, which every backend supports."""
    if tensor.numel() == 0:
        return tensor
    sent = tensor.contiguous().reshape(-1).view(torch.uint8).to(device)
    dist.broadcast(sent, src=source)
    return sent.cpu().view(tensor.dtype).reshape(tensor.shape)

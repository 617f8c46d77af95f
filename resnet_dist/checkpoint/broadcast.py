"""Load a checkpoint on every worker: rank 0 reads it and broadcasts it.

If every worker read it, the storage would be read as many times as there are workers, at the moment when all of them
start; a checkpoint in parts would have as many files opened as there are workers squared.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.rank_zero import run_on_rank_0


def load_and_broadcast(path: Path, rank: int, world_size: int, device: torch.device) -> CheckpointContent:
    """Return the content of the checkpoint in the folder `path`, on the CPU, on every worker. A collective.

    `device` is where the process group takes tensors from. A CheckpointError of rank 0 is raised on every worker.
    """
    if world_size == 1:
        return restore.load(path).content()
    loaded: list[CheckpointContent] = []  # on rank 0

    def load_on_rank_0() -> CheckpointContent:
        loaded.append(restore.load(path).content())
        return loaded[0].map(lambda tensor: tensor.to("meta"))  # shapes and dtypes only

    header = run_on_rank_0(load_on_rank_0, rank, world_size)
    own = loaded[0] if loaded else header.map(lambda tensor: torch.empty_like(tensor, device="cpu"))
    return own.map(lambda tensor: _broadcast(tensor, device))


def _broadcast(tensor: Tensor, device: torch.device) -> Tensor:
    """Return rank 0's `tensor`, on the CPU. It is sent as bytes, which every backend supports."""
    if tensor.numel() == 0:
        return tensor
    sent = tensor.contiguous().reshape(-1).view(torch.uint8).to(device)
    dist.broadcast(sent, src=0)
    return sent.cpu().view(tensor.dtype).reshape(tensor.shape)

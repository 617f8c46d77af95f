"""A checkpoint for all workers: rank 0 reads it, the network brings it to the others.

Every worker reading for itself would take the checkpoint from the storage as many times as there are workers, at the
moment when all of them start; and where it was written in parts, open as many files as there are workers squared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.checkpoint import restore
from resnet_dist.errors import CheckpointError

_Name = tuple[str, ...]  # of a tensor: model, optimizer or ema, and its name in there
_Form = tuple[torch.Size, torch.dtype]


@dataclass(frozen=True)
class Contents:
    """All that a checkpoint holds, on the CPU."""

    path: Path
    step: int  # completed steps
    state: Mapping[str, Any]  # state.json
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    ema: Mapping[str, Tensor] | None


def read(path: Path) -> Contents:
    """The checkpoint in the folder `path`, verified. Raises CheckpointError."""
    found = restore.load(path)
    return Contents(path, found.step, found.state, found.model(), found.optimizer(), found.ema())


def hand_out(path: Path, rank: int, world_size: int, device: torch.device) -> Contents:
    """As `read`, on every worker: rank 0 reads, `device` is where its process group takes tensors from. A collective.

    What rank 0 finds wrong is raised on every worker.
    """
    contents: Contents | None = None
    error: CheckpointError | None = None
    if rank == 0:
        try:
            contents = read(path)
        except CheckpointError as caught:
            error = caught
    if world_size > 1:
        found: list[Any] = [error, None if contents is None else _Head.of(contents)]
        dist.broadcast_object_list(found, src=0)
        error, head = found
        if head is not None:
            own = {} if contents is None else _flat(contents)
            received = {name: _broadcast(own.get(name), form, device) for name, form in head.forms.items()}
            contents = contents or head.contents(path, received)
    if error is not None:
        raise error
    assert contents is not None
    return contents


@dataclass(frozen=True)
class _Head:
    """All but the tensors' elements."""

    step: int
    state: Mapping[str, Any]
    optimized: tuple[str, ...]  # some of them have no state
    has_ema: bool
    forms: Mapping[_Name, _Form]

    @classmethod
    def of(cls, contents: Contents) -> _Head:
        forms = {name: (tensor.shape, tensor.dtype) for name, tensor in _flat(contents).items()}
        return cls(contents.step, contents.state, tuple(contents.optimizer), contents.ema is not None, forms)

    def contents(self, path: Path, tensors: Mapping[_Name, Tensor]) -> Contents:
        model: dict[str, Tensor] = {}
        ema: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {name: {} for name in self.optimized}
        for (kind, name, *key), tensor in tensors.items():
            if kind == "optimizer":
                optimizer[name][key[0]] = tensor
            else:
                (model if kind == "model" else ema)[name] = tensor
        return Contents(path, self.step, self.state, model, optimizer, ema if self.has_ema else None)


def _broadcast(own: Tensor | None, form: _Form, device: torch.device) -> Tensor:
    """Rank 0's tensor, on the CPU; as bytes, which every backend can send."""
    shape, dtype = form
    tensor = torch.empty(shape, dtype=dtype) if own is None else own
    if tensor.numel() == 0:
        return tensor
    sent = tensor.contiguous().reshape(-1).view(torch.uint8).to(device)
    dist.broadcast(sent, src=0)
    return sent.cpu().view(dtype).reshape(shape)


def _flat(contents: Contents) -> dict[_Name, Tensor]:
    return {
        **{("model", name): tensor for name, tensor in contents.model.items()},
        **{
            ("optimizer", name, key): tensor
            for name, states in contents.optimizer.items()
            for key, tensor in states.items()
        },
        **{("ema", name): tensor for name, tensor in (contents.ema or {}).items()},
    }

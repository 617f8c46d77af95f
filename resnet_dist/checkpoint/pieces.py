"""Tensors that the partition of an optimizer state has cut: put together again from the workers' parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_dist.checkpoint.save import PIECES
from resnet_dist.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """Elements `start`, `start` + 1, ... of a tensor of `shape`, in row-major order."""

    start: int
    shape: tuple[int, ...]
    elements: Tensor  # 1-d


def pieces_of(file: Path, metadata: Mapping[str, str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Which parameters' states are pieces in this part: {name: (start, shape of the whole)}. Raises CheckpointError."""
    try:
        listed = json.loads(metadata.get(PIECES, "{}"))
        found = {name: (piece["start"], tuple(piece["shape"])) for name, piece in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(str(file), f"its metadata {PIECES!r} cannot be read ({error!r})") from error
    for name, (start, shape) in found.items():
        if not all(type(number) is int and number >= 0 for number in (start, *shape)):
            raise CheckpointError(str(file), f"its metadata {PIECES!r} has no counts for {name!r}")
    return found


def joined(checkpoint: Path, name: str, pieces: Sequence[Piece]) -> Tensor:
    """The whole tensor `name`; CheckpointError unless the pieces cover each of its elements once."""
    in_order = sorted(pieces, key=lambda piece: piece.start)
    shape, dtype = in_order[0].shape, in_order[0].elements.dtype
    end = 0
    for piece in in_order:
        if piece.start != end or piece.shape != shape or piece.elements.dim() != 1 or piece.elements.dtype != dtype:
            raise CheckpointError(str(checkpoint), f"the pieces of tensor {name!r} do not fit together at {end}")
        end += piece.elements.numel()
    if end != math.prod(shape):
        raise CheckpointError(str(checkpoint), f"the pieces of tensor {name!r} end at {end} of {math.prod(shape)}")
    return torch.cat([piece.elements for piece in in_order]).reshape(shape)

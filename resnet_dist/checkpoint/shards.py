"""Optimizer state that is partitioned over workers: the metadata of an optimizer file, and joining tensor shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_dist.errors import CheckpointError
from resnet_dist.input_files import parse_json

# {parameter name: (first element, shape of the whole parameter)}: the parameter's states in this file are flat shards,
# except for those without dimensions
Shards = Mapping[str, tuple[int, tuple[int, ...]]]

# Keys of an optimizer file's metadata, see resnet_dist.checkpoint.format. The values are JSON.
_STATELESS = "stateless"  # list of the parameters that have no state
_SHARDS = "pieces"


@dataclass(frozen=True)
class Shard:
    """Elements `start`, `start` + 1, ... of a tensor of `shape`, in row-major order."""

    start: int
    shape: tuple[int, ...]
    elements: Tensor  # 1-d


def to_metadata(stateless: Iterable[str], shards: Shards) -> dict[str, str]:
    """Return the metadata of an optimizer file."""
    metadata = {_STATELESS: json.dumps(list(stateless))}
    if shards:
        metadata[_SHARDS] = json.dumps(
            {name: {"start": start, "shape": shape} for name, (start, shape) in shards.items()}
        )
    return metadata


def from_metadata(file: Path, metadata: Mapping[str, str]) -> tuple[list[str], Shards]:
    """Return the parameters without state, and the shards, of the optimizer file `file`. Raises CheckpointError."""
    key = _STATELESS
    try:
        stateless = [str(name) for name in parse_json(metadata[key].encode())]
        key = _SHARDS
        entries = parse_json(metadata.get(key, "{}").encode()).items()
        shards = {name: (entry["start"], tuple(entry["shape"])) for name, entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(str(file), f"its metadata {key!r} cannot be read ({error!r})") from error
    for name, (start, shape) in shards.items():
        if not all(type(number) is int and number >= 0 for number in (start, *shape)):
            problem = f"its metadata {key!r} must give non-negative integers for {name!r}, got {start!r} and {shape!r}"
            raise CheckpointError(str(file), problem)
    return stateless, shards


def join(checkpoint: Path, name: str, shards: Sequence[Shard]) -> Tensor:
    """Return the whole tensor `name`. Raises CheckpointError unless `shards` hold each of its elements once."""
    in_order = sorted(shards, key=lambda shard: shard.start)
    shape, dtype = in_order[0].shape, in_order[0].elements.dtype
    end = 0
    for shard in in_order:
        if shard.start != end or shard.shape != shape or shard.elements.dim() != 1 or shard.elements.dtype != dtype:
            raise CheckpointError(
                str(checkpoint), f"the shards of tensor {name!r} do not fit together at element {end}"
            )
        end += shard.elements.numel()
    if end != math.prod(shape):
        problem = f"the shards of tensor {name!r} hold {end} of {math.prod(shape)} elements"
        raise CheckpointError(str(checkpoint), problem)
    return torch.cat([shard.elements for shard in in_order]).reshape(shape)

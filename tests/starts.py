"""The part of a run's start that makes or finds its index; and changes to files."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_dist.data import Index
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.recipe.schema import DataRecipe


def started(
    folder: Path, saved: Path, shared: Path | None = None, *, num_classes: int = 3, resumed: bool = False, **keys: str
) -> tuple[Index, Index]:
    data = DataRecipe(root=str(folder), **keys)  # type: ignore[arg-type]
    return shared_indices(data, num_classes, 0, 1, saved, shared, resumed=resumed)


def touch(folder: Path) -> None:
    """Another modification time: file systems may be too coarse for two changes in a row."""
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)

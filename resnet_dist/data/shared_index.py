"""The tables of samples that all workers of a run share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch.distributed as dist

from resnet_dist.data import Index, check_labels, check_same_classes, index_of, is_current
from resnet_dist.errors import DataError, TrainingError
from resnet_dist.recipe.schema import Recipe


def shared_indices(recipe: Recipe, rank: int, world_size: int, folder: Path) -> tuple[Index, Index]:
    """The indices of both splits: made once by rank 0, which saves them to `folder`; the others read them.

    An index saved by an earlier attempt is used as long as its folders have not changed. What rank 0 finds wrong is
    raised on every worker. A collective.
    """
    error: TrainingError | None = None
    if rank == 0:
        try:
            for split in ("train", "val"):
                _index_once(recipe, split, folder)
        except TrainingError as caught:
            error = caught
    if world_size > 1:
        found = [error]
        dist.broadcast_object_list(found, src=0)
        error = found[0]
    if error is not None:
        raise error
    train, val = (Index.load(folder / f"{split}.npz") for split in ("train", "val"))
    check_same_classes(recipe.data.root, train.classes, val.classes)
    for index in (train, val):
        check_labels(index, recipe.model.num_classes)
    return train, val


def _index_once(recipe: Recipe, split: Any, folder: Path) -> None:
    file = folder / f"{split}.npz"
    if file.exists():
        with contextlib.suppress(DataError):  # a damaged one is made anew
            saved = Index.load(file)
            if saved.root == recipe.data.root and is_current(saved):
                return
    folder.mkdir(parents=True, exist_ok=True)
    index_of(recipe.data, split).save(file)

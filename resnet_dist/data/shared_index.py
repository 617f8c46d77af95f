"""The indices that all workers of a run share."""

from __future__ import annotations

import contextlib
from pathlib import Path

from resnet_dist.data import Index, check_labels, check_same_classes, index_of, is_current
from resnet_dist.data.image_folder import Split
from resnet_dist.errors import DataError
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.recipe.schema import DataRecipe


def shared_indices(data: DataRecipe, num_classes: int, rank: int, world_size: int, folder: Path) -> tuple[Index, Index]:
    """The indices of the training and val splits: rank 0 creates and saves them in `folder`, all workers read them.

    An index saved by an earlier attempt is used as long as its folders have not changed. A TrainingError on rank 0 is
    raised on every worker. A collective.
    """

    def create_both() -> None:
        _create(data, "train", folder / "train.npz")
        _create(data, "val", folder / "val.npz")

    run_on_rank_0(create_both, rank, world_size)
    train, val = (Index.load(folder / f"{split}.npz") for split in ("train", "val"))
    check_same_classes(data.root, train.classes, val.classes)
    for index in (train, val):
        check_labels(index, num_classes)
    return train, val


def _create(data: DataRecipe, split: Split, file: Path) -> None:
    if file.exists():
        with contextlib.suppress(DataError):  # a damaged file is replaced
            saved = Index.load(file)
            if saved.root == data.root and is_current(saved):
                return
    index_of(data, split).save(file)

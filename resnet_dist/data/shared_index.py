"""The indices that all workers of a run share."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from resnet_dist.data import Index, check_labels, check_same_classes, compare_classes, index_of, is_current
from resnet_dist.data.image_folder import without_sub_folders
from resnet_dist.data.listing import SPLITS, Split
from resnet_dist.data.sources import check_num_samples
from resnet_dist.data.synthetic import synthetic_indices
from resnet_dist.errors import DataError
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)


def shared_indices(
    data: DataRecipe, num_classes: int, rank: int, world_size: int, folder: Path, *, resumed: bool = False
) -> tuple[Index, Index]:
    """The indices of the training and val splits: rank 0 creates and saves them in `folder`, all workers read them.

    `saved_index` decides whether an index of an earlier start is used. Rank 0 logs what was left out. Raises DataError
    if a `resumed` run began without images that the index has now, because version 0.1 ignored sub-folders. A
    TrainingError on rank 0 is raised on every worker. A collective.
    """

    if data.source == "synthetic":
        return synthetic_indices(data, num_classes)

    def create_both() -> None:
        for split in SPLITS:
            if saved_index(data, split, folder) is None:
                _create(data, split, index_file(folder, split), resumed=resumed)

    run_on_rank_0(create_both, rank, world_size)
    train, val = (Index.load(index_file(folder, split)) for split in SPLITS)
    check_indices(data, num_classes, train, val)
    if rank == 0:
        for note in (*train.notes, *val.notes, *compare_classes(data.root, train.classes[:num_classes], num_classes)):
            _log.warning("%s", note)
    return train, val


def check_indices(data: DataRecipe, num_classes: int, train: Index, val: Index) -> None:
    """Raise DataError or RecipeError for indices that do not fit each other, `data.num_samples` or the model."""
    check_num_samples(data, train)
    check_same_classes(data.root, train.classes, val.classes)
    for index in (train, val):
        check_labels(index, num_classes)


def saved_index(data: DataRecipe, split: Split, folder: Path) -> Index | None:
    """The index saved in `folder` by an earlier start, if it is what `index_of` would create now; else None.

    It is used only if it was created for the same root and source, and no listed folder has changed since.
    """
    saved = _load(index_file(folder, split))
    made_for_these = saved is not None and (saved.root, saved.source) == (data.root, data.source)
    return saved if saved is not None and made_for_these and is_current(saved) else None


def index_file(folder: Path, split: Split) -> Path:
    """The file of a split's index in the run's folder of indices."""
    return folder / f"{split}.safetensors"


def check_sub_folders(index: Index, fingerprint: str, began: str) -> None:
    """Raise DataError if `fingerprint` is that of `index` without the images in sub-folders of class folders.

    `began` says what has that fingerprint.
    """
    before = without_sub_folders(index)
    if before is None or before.fingerprint() != fingerprint:
        return
    added = sorted(set(index.paths) - set(before.paths))
    raise DataError(
        index.root,
        f"has images in sub-folders of class folders: {len(added):,}, for example {added[0]}. {began} without them: "
        "version 0.1 ignored sub-folders. Allowed: a run under another name, which uses all images; or move the "
        "sub-folders out of data.root to continue this run",
    )


def _create(data: DataRecipe, split: Split, file: Path, *, resumed: bool) -> None:
    index = index_of(data, split)
    before = _load(file)
    if resumed and before is not None and before.root == data.root:
        check_sub_folders(index, before.fingerprint(), "The run began")
    dataclasses.replace(index, source=data.source).save(file)


def _load(file: Path) -> Index | None:
    """A saved index; None if there is none or if it is damaged: it is created again."""
    try:
        return Index.load(file)
    except DataError:
        return None

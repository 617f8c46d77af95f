"""The indices that all workers of a run share."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_dist.data import Index, check_labels, check_same_classes, compare_classes
from resnet_dist.data.index.changes import check_sub_folders
from resnet_dist.data.index.made import Folders, check_broken, index_file, make_indices, saved_index
from resnet_dist.data.index.progress import IndexProgress
from resnet_dist.data.sources.by_name import LISTINGS, check_num_samples
from resnet_dist.data.sources.classes import select
from resnet_dist.data.sources.listing import SPLITS, Split
from resnet_dist.data.sources.parquet import row_group_warnings
from resnet_dist.data.sources.synthetic import synthetic_indices
from resnet_dist.errors import DataError, RecipeError, StorageError
from resnet_dist.rank_zero import run_long_on_rank_0
from resnet_dist.recipe.schema import DataRecipe

VISIBLE_S = 60.0  # a network file system may show a new file to other nodes later, by its caches' time-out

_log = logging.getLogger(__name__)


def shared_indices(
    data: DataRecipe,
    num_classes: int,
    rank: int,
    world_size: int,
    folder: Path,
    shared: Path | None = None,
    *,
    resumed: bool = False,
    beat: Callable[[], object] = lambda: None,
    tell: Callable[[Mapping[str, Any]], object] = lambda detail: None,
) -> tuple[Index, Index]:
    """The indices of the training and val splits: rank 0 sees to it that they are in `folder`, all workers read them.

    `shared` is a folder for the indices of all runs of a storage. `resnet_dist.data.index.made` decides whether one of
    an earlier start is used. Meanwhile all workers call `beat` as the work moves on, and rank 0 calls `tell` with what
    a person should see. Rank 0 logs what was left out. Raises DataError if the data of a `resumed` run have changed. A
    TrainingError on rank 0 is raised on every worker. A collective.
    """
    if data.source == "synthetic":
        return synthetic_indices(data, num_classes)
    progress = IndexProgress()

    def make_both() -> dict[Split, str]:
        return make_indices(data, Folders.of(data, folder, shared), progress, resumed=resumed)

    def tick() -> None:
        if (detail := progress.news()) is not None:
            tell(detail)

    made = run_long_on_rank_0(make_both, rank, world_size, done=lambda: progress.count, beat=beat, tick=tick)
    whole = [_loaded(index_file(folder, split), made[split], rank) for split in SPLITS]
    train, val = select(data, *whole)
    check_broken(data, train, val)  # now that they are saved: the next start reads the broken ones only
    _check_exif(data, train, val)
    check_indices(data, num_classes, train, val)
    if rank == 0:
        fewer = compare_classes(data.root, train.classes[:num_classes], num_classes)
        for note in (*train.notes, *val.notes, *fewer, *row_group_warnings(data, train)):
            _log.warning("%s", note)
    return train.with_exif(data.exif), val.with_exif(data.exif)


def _loaded(file: Path, digest: str, rank: int) -> Index:
    """The index that rank 0 has left in `file`. Raises StorageError if this worker does not find it there."""
    deadline = time.monotonic() + VISIBLE_S
    while True:
        with contextlib.suppress(DataError):
            index = Index.load(file)
            if index.digest() == digest:
                return index
        if time.monotonic() > deadline:
            problem = f"is not the index that rank 0 has written, after {VISIBLE_S:g} s, on rank {rank}"
            raise StorageError(str(file), f"{problem}: the storage must be the same folder on all nodes")
        time.sleep(1)


def _check_exif(data: DataRecipe, *indices: Index) -> None:
    """Raise RecipeError for `data.exif: apply` if a user's source does not say how its images are turned."""
    if data.exif == "ignore" or data.source in (*LISTINGS, "packed"):
        return
    if all(bool(np.all(index.orientations == 1)) for index in indices):
        found = f"is apply, and {data.source} returns an Index without orientations: no image would be turned"
        raise RecipeError("data.exif", found, "ignore, or an Index with `orientations`", ("data.source",))


def check_indices(data: DataRecipe, num_classes: int, train: Index, val: Index) -> None:
    """Raise DataError or RecipeError for indices that do not fit each other, `data.num_samples` or the model."""
    check_num_samples(data, train)
    check_same_classes(data.root, train.classes, val.classes)
    for index in (train, val):
        check_labels(index, num_classes)


def facts_of_data(train: Index, val: Index, order: str = "uniform") -> dict[str, str | None]:
    """What checkpoints record about the images of a run: names, labels and sizes (`data`), and their bytes.

    Under `data.order: shards` also which sample is in which shard, which decides about the order.
    """
    return {
        "data_shards": hashlib.sha256(train.shard_numbers.tobytes()).hexdigest() if order == "shards" else None,
        "data": train.fingerprint(),
        "data_contents": train.contents(),
        "val_data": val.fingerprint(),
        "val_data_contents": val.contents(),
    }


def check_same_data(now: Mapping[str, str | None], state: Mapping[str, Any], step: int, train: Index) -> None:
    """Raise DataError if the images are not those that the `state` of the checkpoint of `step` records.

    Checkpoints of version 0.1 have `data` only. `make_indices` has compared the images with the run's own index and
    names those that have changed; this is for a run whose index is lost.
    """
    changed = [key for key, value in now.items() if None not in (value, state.get(key)) and state[key] != value]
    if "data" in changed:
        check_sub_folders(train, state["data"], f"The checkpoint of step {step} was trained")
    for key in changed:
        split = "val" if key.startswith("val") else "train"
        kinds = {"contents": "bytes", "shards": "shards (data.order: shards)"}
        what = kinds.get(key.rpartition("_")[2], "files, labels or sizes")
        advice = "Restore them, or start a run under another name"
        problem = f"{what} of {split} have changed since the checkpoint of step {step}. {advice}"
        raise DataError(train.root, problem)


__all__ = ["SPLITS", "check_broken", "check_indices", "index_file", "saved_index", "shared_indices"]

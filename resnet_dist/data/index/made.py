"""Finds the index of a split that an earlier start of this or of another run has made, or makes it.

    STORAGE/.indices/KEY/{train,val}.safetensors   shared by the runs in a folder that use the same data
                         .train.parts/             what an interrupted start has read
                         .train.making             the process that makes the index now; others wait for it
    STORAGE/NAME/index/{train,val}.safetensors     what a run uses: the same file, or a copy

When changes of the data are noticed:

    images that come or go              at the start, by the times of the folders, or of the shards
    a file that is written again        at the start, by its size, or the time when its inode changed; when it is
                                        decoded, by its size and its last 64 bytes
    a shard or object written again     at the start, by its time or version
    neither: a change below a mount whose times do not change, of equal size and with equal last bytes
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.data.index.build import build_index, check_whole, refreshed
from resnet_dist.data.index.changes import as_it_began, changes, check_sub_folders, is_current
from resnet_dist.data.index.old import load_old
from resnet_dist.data.index.progress import IndexProgress
from resnet_dist.data.index.table import Index
from resnet_dist.data.index.turn import Turn
from resnet_dist.data.sources.by_name import LISTINGS, identity, index_of
from resnet_dist.data.sources.classes import select
from resnet_dist.data.sources.known_bad import known_names
from resnet_dist.data.sources.listing import SPLITS, Split
from resnet_dist.data.sources.shards import find_shards
from resnet_dist.data.storage.local import storage_of
from resnet_dist.errors import DataError, StorageError
from resnet_dist.recipe.schema import DataRecipe

_LISTINGS_AT_MOST = 3  # while images come and go
_POLL_S = 1.0  # for the index that another process makes

_log = logging.getLogger(__name__)


def index_file(folder: Path, split: Split) -> Path:
    """The file of a split's index in a folder of indices."""
    return folder / f"{split}.safetensors"


def shared_folder(data: DataRecipe, shared: Path) -> Path:
    """The folder for the indices of these data in `shared`, a folder that all runs of a storage share."""
    return shared / hashlib.sha256(f"{data.root}\0{identity(data)}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Folders:
    """Folders of the indices of one data set."""

    own: Path  # of the run
    shared: Path  # of all runs; `own` without one
    home: Path  # where an index is made: `shared` if it can be written, else `own`

    @classmethod
    def of(cls, data: DataRecipe, own: Path, shared: Path | None) -> Folders:
        """The folders for a run, whose own is `own`. A warning says that `shared` cannot be written."""
        if shared is None or data.source not in LISTINGS:
            return cls(own, own, own)
        folder = shared_folder(data, shared)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return cls(own, folder, folder)
        except OSError as error:
            _log.warning(
                "%s: cannot be written (%s): other runs do not share the index", folder, error.strerror or error
            )
            return cls(own, folder, own)

    def files(self, split: Split) -> list[Path]:
        """The files in which the index may be: that of all runs first, since others may have refreshed it."""
        return [index_file(folder, split) for folder in dict.fromkeys((self.shared, self.own))]


def saved_index(data: DataRecipe, split: Split, folder: Path, shared: Path | None = None) -> Index | None:
    """The index in `shared` or in `folder`, if it is what would be listed now; else None.

    Compared are the root, the source, and the times of the folders or shards; files are not.
    """
    files = [index_file(folder, split)]
    if shared is not None:
        files.insert(0, index_file(shared_folder(data, shared), split))
    found = (_current(data, split, file) for file in files)
    return next((index for index in found if index is not None), None)


def make_indices(data: DataRecipe, folders: Folders, progress: IndexProgress, *, resumed: bool) -> dict[Split, str]:
    """Put the index of each split into `folders.own`, a saved one if it is current, else a new one; their digests.

    A warning says what has changed since the last index. Broken images are in it, see `check_broken`. Raises DataError
    if the images of a `resumed` run have changed; StorageError if the folder cannot be written.
    """
    befores = {split: _of_the_run(folders, split) for split in SPLITS}
    lasts = {split: befores[split] or _load(index_file(folders.home, split)) for split in SPLITS}
    found = {split: _found(data, split, folders, progress) for split in SPLITS}
    if resumed:
        check_broken(data, *select(data, found["train"][0], found["val"][0]))
    for split, (index, file) in found.items():
        before, last = befores[split], lasts[split]
        if resumed and before is not None:
            merged = _as_it_began(data, split, before, index)
            _put(merged, file if merged is index else None, index_file(folders.own, split))
            continue
        if last is not None and last.root == index.root and (changed := changes(last, index)):
            _log.warning("%s: %s has changed since its last index: %s", data.root, split, changed)
        _put(index, file, index_file(folders.own, split))
    return {split: Index.load(index_file(folders.own, split)).digest() for split in SPLITS}


def _of_the_run(folders: Folders, split: Split) -> Index | None:
    """The index that an earlier start of the run has used."""
    own = index_file(folders.own, split)
    return _load(own) or load_old(own.with_suffix(".npz"))


def _found(data: DataRecipe, split: Split, folders: Folders, progress: IndexProgress) -> tuple[Index, Path | None]:
    """The index of what is there now, and the file that has it, if there is one."""
    progress.begin(f"asking {data.root} what {split} has now")
    if data.source in LISTINGS:
        return _listed_index(data, split, folders, progress)
    return dataclasses.replace(index_of(data, split), source=identity(data)), None


def _put(index: Index, file: Path | None, own: Path) -> None:
    """Make `own` the file of `index`, which `file` has already if it is given. Raises StorageError."""
    try:
        if file is None or not _linked(file, own):
            index.save(own)
    except OSError as error:
        raise StorageError(str(own), error.strerror or str(error)) from error


def check_broken(data: DataRecipe, *indices: Index) -> None:
    """Raise one DataError for all broken images under `data.on_error: fail`, except for `data.known_bad`."""
    if data.on_error == "fail" and any(index.problems for index in indices):
        check_whole(*indices, known_bad=known_names(data))


def _as_it_began(data: DataRecipe, split: Split, before: Index, index: Index) -> Index:
    """`index` for a run that began with `before`. Raises DataError if images that it reads have changed."""
    index = as_it_began(before, index, known_names(data))
    if changed := changes(before, index):
        check_sub_folders(index, before.fingerprint(), "The run began")
        advice = "Restore them, list those that are missing or changed in data.known_bad, or start a run under another "
        advice += "name"
        raise DataError(data.root, f"{split} has changed since the run began: {changed}. {advice}")
    return index


def _listed_index(
    data: DataRecipe, split: Split, folders: Folders, progress: IndexProgress
) -> tuple[Index, Path | None]:
    """The index of a split, and the file that has it, if there is one."""
    turn = Turn(folders.home / f".{split}.making")
    while True:
        for file in folders.files(split):
            index = _current(data, split, file)
            if index is None:
                continue
            progress.begin(f"comparing the files of {split} with the index")
            fresh = refreshed(index, data=data, report=progress.report)
            if fresh is not index:
                return fresh, _shared(fresh, split, folders)
            _linked(file, index_file(folders.home, split))
            return index, file
        with turn.taken() as is_ours:
            # another process may have made it in the meantime
            if is_ours and _current(data, split, index_file(folders.home, split)) is None:
                index = _new_index(data, split, folders.home / f".{split}.parts", progress)
                return index, _shared(index, split, folders)
        if not is_ours:
            progress.say(f"waiting for the index of {split} (made by {turn.holder()})")
            time.sleep(_POLL_S)


def _new_index(data: DataRecipe, split: Split, parts: Path, progress: IndexProgress) -> Index:
    """An index of what is there when it is complete."""
    changed = ""
    index: Index | None = None
    for _ in range(_LISTINGS_AT_MOST):
        progress.begin(f"listing the images of {split}")
        listing = LISTINGS[data.source](data, split, functools.partial(_tell, progress, split))
        progress.begin(f"reading the headers of {split}")
        known = None if listing.shards else index
        made = build_index(
            listing, data.root, identity(data), data=data, report=progress.report, parts=parts, known=known
        )
        if index is not None and (changed := changes(index, made)):
            _log.warning("%s: %s has changed while its index was made: %s", data.root, split, changed)
        index = made
        if not index.folder_times_ns or _is_current(index, data, split):
            return index
    problem = f"images of {split} come and go while their index is made: {changed}. Wait until they are all there"
    raise DataError(data.root, problem)


def _tell(progress: IndexProgress, split: Split, text: str) -> None:
    progress.say(f"listing the images of {split}: {text}")


def _shared(index: Index, split: Split, folders: Folders) -> Path | None:
    """Save an index in the folder of all runs, and return the file; None, with a warning, if that fails."""
    if folders.home == folders.own:
        return None
    file = index_file(folders.home, split)
    try:
        index.save(file)
        return file
    except OSError as error:
        _log.warning("%s: cannot be written (%s): other runs do not share the index", file, error.strerror or error)
        return None


def _linked(source: Path, target: Path) -> bool:
    """Make `target` the same file as `source`, atomically; False if the file system has no links."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        if target.exists() and target.samefile(source):
            return True
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.hardlink_to(source)
        temporary.replace(target)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _current(data: DataRecipe, split: Split, file: Path) -> Index | None:
    """The index in `file`, if it was made for the same root and source, and of what is there now; else None."""
    index = _load(file)
    if index is None or (index.root, index.source) != (data.root, identity(data)):
        return None
    return index if _is_current(index, data, split) else None


def _is_current(index: Index, data: DataRecipe, split: Split) -> bool:
    """Whether the folders or shards are those of the index, with the times that they had."""
    if not index.folder_times_ns:
        return False
    if index.shards:
        suffix = os.path.splitext(index.shards[0])[1]  # noqa: PTH122
        with contextlib.suppress(DataError):  # it is raised again when the shards are listed
            found = find_shards(storage_of(data.root, data), split, suffix, data.num_samples)
            return found.times_ns == dict(index.folder_times_ns)
        return False
    return is_current(index)


def _load(file: Path) -> Index | None:
    """A saved index; None if there is none or if it is damaged: it is created again."""
    try:
        return Index.load(file)
    except DataError:
        return None

"""Image folders below an address: s3://bucket/folder/train/CLASS/**/*.jpg. Object stores have keys, and no folders.

Classes, order and labels are those of `resnet_dist.data.sources.image_folder` for a copy of the objects on a disk.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_dist.data.index.table import Index, check_same_classes
from resnet_dist.data.names import some
from resnet_dist.data.sources.image_folder import LAYOUT, fitting_source
from resnet_dist.data.sources.listing import SPLITS, SUFFIXES, Listing, Split
from resnet_dist.data.storage.local import Entry
from resnet_dist.data.storage.remote import RemoteStorage
from resnet_dist.errors import DataError

_THREADS = 16  # classes that are listed at once: a request has up to 1,000 keys


def list_objects(storage: RemoteStorage, split: Split) -> Listing:
    """The images below root/split of an address; `folder_times_ns` has one number, made from all versions.

    Left out, with a note that counts them, are objects without the suffix of an image; without a note, objects outside
    of the classes and those whose name begins with a dot. Raises DataError as `list_images` does, and StoreUnavailable.
    """
    classes, own = _class_names(storage, split)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
        found = list(pool.map(lambda name: _objects(storage, f"{split}/{name}") if name in own else [], classes))
    entries = [entry for of_class in found for entry in of_class if _is_image(entry)]
    counts = [sum(map(_is_image, of_class)) for of_class in found]
    without = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if without and (split == "train" or not entries):
        contents = some([entry.path for entry in found[classes.index(without[0])]])
        problem = f"is a class without images; it contains {contents}; known suffixes: {' '.join(SUFFIXES)}"
        raise DataError(f"{storage.root}/{split}/{without[0]}", problem)
    return Listing(
        classes=classes,
        paths=tuple(entry.path for entry in entries),
        labels=np.repeat(np.arange(len(classes)), counts),
        folder_times_ns={split: _version(classes, entries)},
        notes=tuple(_notes(storage.root, split, classes, found, without)),
        num_bytes=np.array([entry.num_bytes for entry in entries], np.int64),
        times_ns=np.array([entry.time_ns for entry in entries], np.int64),
    )


def an_object(storage: RemoteStorage, split: Split) -> Listing:
    """One image of root/split. Raises as `list_objects`, for what is listed here."""
    classes, own = _class_names(storage, split)
    for name in own:
        entry = next(filter(_is_image, _objects(storage, f"{split}/{name}")), None)
        if entry is not None:
            sizes, times_ns = np.array([entry.num_bytes]), np.array([entry.time_ns])
            return Listing(classes, (entry.path,), (classes.index(name),), num_bytes=sizes, times_ns=times_ns)
    raise DataError(f"{storage.root}/{split}", "has no images")


def is_current(index: Index) -> bool:
    """Whether an index of an image folder has the objects that are there now, in the same versions.

    Everything is listed again. Raises StoreUnavailable.
    """
    storage, recorded = RemoteStorage(index.root), index.folder_times_ns
    with contextlib.suppress(DataError):  # it is raised again when the objects are listed
        return all(list_objects(storage, split).folder_times_ns == recorded for split in SPLITS if split in recorded)
    return False


def _class_names(storage: RemoteStorage, split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes of both splits, which are those of train if it exists; and those that this split has."""
    top = storage.folders()
    own = tuple(storage.folders(split)) if split in top else ()
    if not own:
        problem = "no such folder" if split not in top else "has no class folder"
        entries = storage.entries(split if split in top else "")
        hint = fitting_source([entry.path.rpartition("/")[2] for entry in entries])
        raise DataError(f"{storage.root}/{split}", f"{problem}; {LAYOUT}; the address above contains {some(top)}{hint}")
    other: Split = "val" if split == "train" else "train"
    if other not in top:
        return own, own
    names = {split: own, other: tuple(storage.folders(other))}
    check_same_classes(storage.root, names["train"], names["val"], subset=True)
    return names["train"], own


def _objects(storage: RemoteStorage, folder: str) -> list[Entry]:
    """All objects below a folder in the order of `list_images`: by folder, then by name."""

    def place(entry: Entry) -> tuple[str, str]:
        above, _, name = entry.path.rpartition("/")
        return above, name

    return sorted(storage.entries(folder, deep=True), key=place)


def _is_image(entry: Entry) -> bool:
    return entry.path.lower().endswith(SUFFIXES)


def _version(classes: Sequence[str], entries: Sequence[Entry]) -> int:
    digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
    for entry in entries:
        digest.update(f"{entry.path}\n{entry.num_bytes}\n{entry.time_ns}\n".encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _notes(
    root: str, split: Split, classes: Sequence[str], found: Sequence[Sequence[Entry]], without: Sequence[str]
) -> list[str]:
    others = [entry.path for of_class in found for entry in of_class if not _is_image(entry)]
    notes = []
    if others:
        example = min(others).removeprefix(f"{split}/")
        reason = "files without the suffix of an image"
        notes.append(f"{root}/{split}: left out {reason}: {len(others):,}, for example {example}")
    if without:
        notes.append(f"{root}/{split}: {len(without):,} of {len(classes):,} classes have no images: {some(without)}")
    return notes

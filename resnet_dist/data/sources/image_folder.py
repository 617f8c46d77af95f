"""Image folders in torchvision's ImageFolder layout: root/train/CLASS/**/*.jpg, root/val/CLASS/**/*.jpg."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from resnet_dist.data.index.columns import Texts
from resnet_dist.data.index.table import Index, check_same_classes
from resnet_dist.data.names import shown, some
from resnet_dist.data.sources.listing import SUFFIXES, LeftOut, Listing, Split
from resnet_dist.data.storage.local import HIDDEN, RECOVERED
from resnet_dist.errors import DataError

LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, one folder per class"

_SORT_TINY = (
    "val_annotations.txt has their classes. Move each into the folder of its class; in that folder: while read -r file "
    'class _; do mkdir -p "$class/images"; mv "images/$file" "$class/images/"; done < val_annotations.txt; '
    "rmdir images; mv val_annotations.txt .."
)

# What a listing leaves out, as a note names it.
_OUTSIDE = "files outside of the class folders"
_UNKNOWN = "files without the suffix of an image"


def list_images(root: str, split: Split) -> Listing:
    """The images of root/split in the order of torchvision's ImageFolder; links are followed.

    Classes are the sorted names of the folders in root/train, for both splits. Images may be in folders inside a class
    folder. Left out, with a note that counts them, are files without the suffix of an image, files outside of class
    folders, folders lost+found, and files and folders whose name begins with a dot. A note also counts the classes that
    val does not have. Whether a file with the name of an image is one, its header tells.

    Raises DataError, with the path, for a folder that is missing or cannot be read, no class folders, a class without
    images in train, a class that only val has, and a link to a folder above it.
    """
    # Times are taken before listing: a file added in between makes the index outdated, never silently incomplete.
    above: tuple[str, ...] = ("train", split)  # the classes of val are those of train
    times_ns = {name: _stat(root, name).st_mtime_ns for name in above if _is_folder(root, name)}
    classes = class_names(root, split)
    left_out = LeftOut()
    own: set[str] = set()
    for name, is_folder in _entries(root, split, left_out):
        if is_folder:
            own.add(name)
        else:
            left_out.add(_OUTSIDE, f"{split}/{name}")
    paths: list[Texts] = []  # of each class: a million names take a third of the memory of a list
    without: list[str] = []
    for name in classes:
        folders = sorted(_folders(root, f"{split}/{name}", left_out)) if name in own else []
        files = [f"{folder}/{file}" for folder, _, names in folders for file in sorted(names)]
        paths.append(Texts.of(files))
        times_ns |= {folder: time_ns for folder, time_ns, _ in folders}
        if not files:
            without.append(name)
    if without and (split == "train" or len(without) == len(classes)):
        folder = Path(root) / split / without[0]
        found = _contents(folder) if without[0] in own else "nothing"
        suffixes = " ".join(SUFFIXES)
        raise DataError(str(folder), f"is a class without images; it contains {found}; known suffixes: {suffixes}")
    notes = left_out.notes(root, split)
    if without:
        notes.append(f"{root}/{split}: {len(without):,} of {len(classes):,} classes have no images: {some(without)}")
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in paths])
    return Listing(classes, Texts.joined(paths), labels, times_ns, tuple(notes))


def an_image(root: str, split: Split) -> str:
    """The path of one image of root/split. Raises DataError as `list_images` does, for the folders that it reads."""
    for name in class_names(root, split):
        if _is_folder(root, f"{split}/{name}"):
            for folder, _, names in _folders(root, f"{split}/{name}", LeftOut()):
                if names:
                    return str(Path(root) / folder / min(names))
    raise DataError(str(Path(root) / split), "has no images")


def class_names(root: str, split: Split) -> tuple[str, ...]:
    """The classes of both splits: the sorted folders of root/train; those of val only if there is no train.

    Raises DataError if root/split is missing or has no class folder, and for classes that only val has.
    """
    own = _class_folders(root, split)
    other: Split = "val" if split == "train" else "train"
    if not _is_folder(root, other):
        return own
    names = {split: own, other: _class_folders(root, other)}
    check_same_classes(root, names["train"], names["val"], subset=True)
    return names["train"]


def fitting_source(names: Sequence[str]) -> str:
    """The `data.source` that reads files of these names, as the end of a message; nothing if none does.

    >>> fitting_source(["card.json", "train-000000.tar"]), fitting_source(["notes.txt"])
    ('. card.json is of packed shards: set data.source=packed', '')
    """
    if "card.json" in names:
        return ". card.json is of packed shards: set data.source=packed"
    for suffix, source in ((".tar", "webdataset"), (".parquet", "parquet")):
        if found := next((name for name in names if name.lower().endswith(suffix)), None):
            return f". For {shown(found)} and other *{suffix} set data.source={source}"
    return ""


def without_sub_folders(index: Index) -> Index | None:
    """The samples that are directly in a class folder: those of indices of version 0.1. None if that is all or none."""
    directly = np.array([path.count("/") == 2 for path in index.paths])
    if directly.all() or not directly.any():
        return None
    return index.take(np.flatnonzero(directly))


def _class_folders(root: str, split: Split) -> tuple[str, ...]:
    folder = Path(root) / split
    if not _is_folder(root, split):
        above = f"contains {_contents(folder.parent)}" if _is_folder(root, ".") else "does not exist either"
        hint = fitting_source(_names(folder.parent)) if _is_folder(root, ".") else ""
        raise DataError(str(folder), f"no such folder; {LAYOUT}; the folder above {above}{hint}")
    entries = list(_entries(root, split, LeftOut()))
    names = tuple(sorted(name for name, is_folder in entries if is_folder))
    if split == "val" and "val_annotations.txt" in (name for name, _ in entries):
        raise DataError(str(folder), f"has Tiny-ImageNet's images in one folder. {_SORT_TINY}")
    if not names:
        images = [name for name, _ in entries if name.lower().endswith(SUFFIXES)]
        found = f"; {_flat(root, split, images)}" if images else fitting_source([name for name, _ in entries])
        raise DataError(str(folder), f"has no class folder; {LAYOUT}; it contains {_contents(folder)}{found}")
    return names


def _flat(root: str, split: Split, images: list[str]) -> str:
    """What to do with images that are not in class folders."""
    if split == "val" and re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", images[0]):
        command = f"launcher prepare imagenet {shlex.quote(root)} --devkit ILSVRC2012_devkit_t12.tar.gz"
        return f"these are ImageNet's validation images, whose classes are in the devkit. Run: {command}"
    return f"its {len(images):,} images lie flat. Move each into the folder of its class, {split}/CLASS"


def _folders(root: str, top: str, left_out: LeftOut) -> Iterator[tuple[str, int, list[str]]]:
    """(path, modification time in ns, image names) of the folder `top` and of all folders in it, unordered."""
    waiting = [(top, frozenset(_identity(_stat(root, above)) for above in (".", os.path.dirname(top))))]  # noqa: PTH120
    while waiting:
        folder, above = waiting.pop()
        stat = _stat(root, folder)
        if _identity(stat) in above and (Path(root) / folder).is_symlink():
            raise DataError(
                str(Path(root) / folder), "is a link to a folder that contains it. Allowed: remove the link"
            )
        names: list[str] = []
        for name, is_folder in _entries(root, folder, left_out):
            if is_folder:
                waiting.append((f"{folder}/{name}", above | {_identity(stat)}))
            elif name.lower().endswith(SUFFIXES):
                names.append(name)
            else:
                left_out.add(_UNKNOWN, f"{folder}/{name}")
        yield folder, stat.st_mtime_ns, names


def _entries(root: str, folder: str, left_out: LeftOut) -> Iterator[tuple[str, bool]]:
    """(name, is a folder) of all entries of a folder that are not hidden."""
    with _folder_errors(Path(root) / folder), os.scandir(Path(root) / folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                left_out.add(HIDDEN, f"{folder}/{name}")
            elif name == "lost+found":
                left_out.add(RECOVERED, f"{folder}/{name}")
            else:
                yield name, entry.is_dir(follow_symlinks=False) or _is_link_to_folder(entry)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    """Links with the name of an image are taken for images: looking where each of a million leads takes a while."""
    if not entry.is_symlink() or entry.name.lower().endswith(SUFFIXES):
        return False
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself leads nowhere, as one whose target is gone
            return False
        raise DataError(entry.path, f"cannot be read: {error.strerror}") from error


def _is_folder(root: str, folder: str) -> bool:
    with _folder_errors(Path(root) / folder):
        return (Path(root) / folder).is_dir()


def _stat(root: str, folder: str) -> os.stat_result:
    with _folder_errors(Path(root) / folder):
        return (Path(root) / folder).stat()


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(str(folder), f"cannot be read: {error.strerror}") from error


def _contents(folder: Path) -> str:
    return some(_names(folder))


def _names(folder: Path) -> list[str]:
    with _folder_errors(folder):
        return sorted(entry.name for entry in folder.iterdir())

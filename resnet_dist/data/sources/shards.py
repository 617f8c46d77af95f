"""Files that hold many samples: which of them belong to which split, and the classes of samples without class names."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.names import NAMED, some
from resnet_dist.data.sources.listing import LeftOut, Split
from resnet_dist.data.storage.local import NO_FILE, Entry, Storage
from resnet_dist.errors import DataError

# The words in names of shards that say which split they belong to; `test` is val where there is no other val.
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CLASS_FILES = ("classes.txt", "classnames.txt")
_CLASS_FILE_BYTES = 16 * 2**20  # a larger one is another file
_MAX_CLASSES = 1_000_000  # without names: a larger label is something else, such as an identifier


@dataclass(frozen=True)
class Shards:
    """The shards of a split, sorted by path. `times_ns`: of these, and of a file of class names."""

    paths: tuple[str, ...]
    times_ns: dict[str, int]
    notes: tuple[str, ...]


def find_shards(storage: Storage, split: Split, suffix: str, num_samples: int | None = None) -> Shards:
    """The files of `split` that end with `suffix`, at any depth: their name, or else a folder, says the split.

    That is a word of letters: `train` or `training`; `val`, `valid` or `validation`; without those, `test`. Notes count
    files without such a word, and what is left out. `num_samples` is `data.num_samples`: with it, numbers that are
    missing in the sequence of the training shards are a note.

    Raises DataError if there are no shards, if numbers are missing, and for a shard that is not a file.
    """
    left_out = LeftOut()

    def leave_out(reason: str, path: str) -> None:
        if reason == NO_FILE and path.lower().endswith(suffix):
            problem = "is not a file, or a link that leads nowhere. Copy the shard, or delete this"
            raise DataError(f"{storage.root}/{path}", problem)
        left_out.add(reason, path)

    everything = storage.entries(deep=True, left_out=leave_out)
    entries = [entry for entry in everything if entry.path.lower().endswith(suffix)]
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[_split_of(entry.path)].append(entry)
    own = found[split] or (found["test"] if split == "val" else [])
    if not own:
        names = some([entry.path for entry in entries or everything])
        expected = f"expected names such as train-000000{suffix} and val-000000{suffix}"
        raise DataError(storage.root, f"has no file *{suffix} of the split {split}; {expected}; found {names}")
    gaps = list(_gaps([entry.path for entry in own]))
    if gaps and (split == "val" or num_samples is None):
        advice = "Copy them, or rename the others so that no number is missing"
        stated = "; or set data.num_samples to the number of images that are there" if split == "train" else ""
        raise DataError(storage.root, f"{split}: {'; '.join(gaps)}. {advice}{stated}")
    for entry in found[""]:
        left_out.add(f"*{suffix} whose names say neither train nor val", entry.path)
    notes = [f"{storage.root}: {gap}" for gap in gaps]
    if split == "train":  # of both splits, and said once
        notes += left_out.notes(storage.root)
    named = [entry for entry in everything if entry.path in _CLASS_FILES]
    times_ns = {entry.path: entry.time_ns for entry in (*own, *named)}
    return Shards(tuple(entry.path for entry in own), times_ns, tuple(notes))


def class_names(storage: Storage) -> tuple[str, ...] | None:
    """The classes that classes.txt or classnames.txt in the root names, one a line; None if there is no such file.

    Raises DataError for a file without names, or that is not text.
    """
    names = {entry.path: entry.num_bytes for entry in storage.entries()}
    file = next((name for name in _CLASS_FILES if name in names), None)
    if file is None:
        return None
    path = f"{storage.root}/{file}"
    if names[file] > _CLASS_FILE_BYTES:
        raise DataError(path, f"has {names[file]:,} bytes; expected the name of a class in each line")
    try:
        lines = storage.read(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not a text in UTF-8 ({error}); expected the name of a class in each line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not all(line.strip() for line in lines):
        raise DataError(path, "has empty lines, or none; expected the name of a class in each line")
    return tuple(line.strip() for line in lines)


def classes_of(labels: Sequence[int], names: Sequence[str] | None) -> tuple[str, ...]:
    """The class of each label: `names`, or else the numbers from 0 to the largest label."""
    return tuple(map(str, range(max(labels) + 1))) if names is None else tuple(names)


def first_outside(labels: Sequence[int], names: Sequence[str] | None) -> int | None:
    """The row of the first label that is negative, or has no name if there are names; None without one."""
    limit = _MAX_CLASSES if names is None else len(names)
    return next((row for row, label in enumerate(labels) if not 0 <= label < limit), None)


def outside(label: int, names: Sequence[str] | None) -> str:
    """What is wrong with a label that `first_outside` has found."""
    allowed = (
        f"0 to {_MAX_CLASSES - 1:,}"
        if names is None
        else f"0 to {len(names) - 1}, as there are {len(names):,} class names"
    )
    return f"has the label {label}; allowed are {allowed}"


def without_images(where: str, labels: Sequence[int], classes: Sequence[str]) -> Iterator[str]:
    """A note that counts the classes without images, if there are any."""
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist()
    if missing:
        names = some([classes[label] for label in missing])
        yield f"{where}: {len(missing):,} of {len(classes):,} classes have no images: {names}"


def distinct(names: Sequence[str], shard_numbers: NDArray[np.int32], shards: Sequence[str]) -> Sequence[str]:
    """The names of all samples; with the path of its shard in front of each, if two samples have the same name."""
    if len(set(names)) == len(names):
        return names
    stems = [str(PurePosixPath(shard).with_suffix("")) for shard in shards]
    return [f"{stems[number]}/{name}" for number, name in zip(shard_numbers.tolist(), names, strict=True)]


def _split_of(path: str) -> str:
    """train, val, test, or an empty text."""
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _gaps(paths: Sequence[str]) -> Iterator[str]:
    """A text for each sequence of shards with missing numbers: train-0007.tar, or train-00007-of-00294.parquet.

    Numbers start with 0 or 1. Of names without a total, the numbers after the last one cannot be known, and nothing is
    said about numbers of which most are missing: they are something else, such as dates.
    """
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for path in paths:
        if match := re.fullmatch(r"(.*?)(\d{1,9})(?:-of-(\d{1,6})(?:-[0-9a-f]+)?)?(?:\.[a-z]+)+", path.lower()):
            found[match[1], int(match[3] or 0)].add(int(match[2]))
    for (prefix, total), numbers in found.items():
        last = max(numbers)
        start = 1 if 0 not in numbers and last >= total else 0
        end = max(total + start, last + 1)
        num_missing = end - start - len(numbers)
        if num_missing and (total or num_missing < len(numbers)):
            first = itertools.islice((number for number in range(start, end) if number not in numbers), NAMED)
            shown = some([f"{prefix}{number}" for number in first], num_missing)
            yield f"shards missing in a sequence of numbers: {num_missing:,}: {shown}"

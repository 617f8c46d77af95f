"""Some classes of a data set, under other names or joined: `data.classes`."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.table import Index
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.input_files import open_regular
from resnet_dist.recipe.requirements import nearest_name
from resnet_dist.recipe.schema import DataRecipe

KEY = "data.classes"
_FORM = "a text file with a class per line, and after a space or tab its new name, if any; # begins a comment"
_FILE_BYTES = 16 * 2**20
_NAMED = 5  # classes that a message lists


def select(data: DataRecipe, train: Index, val: Index) -> tuple[Index, Index]:
    """Both splits with the classes of `data.classes` only, if it is given: labels are in the order of its lines.

    Raises RecipeError if the file cannot be read or names no class of the data; DataError if a split has none of the
    classes' images.
    """
    train, val = _with_classes_of_both(train, val)
    if data.classes is None:
        return train, val
    return _selected(train, data.classes), _selected(val, data.classes)


def in_use(data: DataRecipe, classes: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes that are used of those of a data set, and the new label of each of these, or -1: int64 [classes].

    Without `data.classes` they are all used. A line of the file is a class of the data, or such a class and its new
    name, with a space or a tab between them. Classes with the same new name become one.

    Raises RecipeError if the file cannot be read, names no class, or names one that the data does not have, or has
    twice.
    """
    if data.classes is None:
        return tuple(classes), np.arange(len(classes), dtype=np.int64)
    return _chosen(data.classes, classes)


def _chosen(file: str, classes: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    counts = Counter(classes)
    names = _renamed(read(file), counts)
    if missing := [name for name in names if name not in counts]:
        near = nearest_name(missing[0], list(counts))
        more = f" (and {len(missing) - 1:,} others)" if len(missing) > 1 else ""
        hint = f". Did you mean {near}?" if near else ""
        raise RecipeError(KEY, f"{file}: {missing[0]}{more} is no class of the data", f"{_listed(classes)}{hint}")
    if twice := [name for name in names if counts[name] > 1]:
        found = f"{file}: {twice[0]} is the name of {counts[twice[0]]} classes of the data"
        raise RecipeError(KEY, found, "classes with a name of their own")
    new = tuple(dict.fromkeys(names.values()))
    numbers = {name: new.index(new_name) for name, new_name in names.items()}
    return new, np.array([numbers.get(name, -1) for name in classes], np.int64)


def read(file: str) -> list[str]:
    """The lines of a file of classes, without comments and empty lines. Raises RecipeError."""
    try:
        with open_regular(Path(file)) as stream:
            content = stream.read(_FILE_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"is not a text in UTF-8 ({error})"
        raise RecipeError(KEY, f"{file}: {problem}", _FORM) from error
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in content.splitlines()]
    if not any(lines):
        raise RecipeError(KEY, f"{file}: names no class", _FORM)
    return [line for line in lines if line]


def _selected(index: Index, file: str) -> Index:
    """The samples of the chosen classes, in the order of the index. Raises DataError if there are none."""
    classes, new_labels = _chosen(file, index.classes)
    labels = new_labels[index.labels]
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise DataError(index.root, f"has no images of the classes of {KEY} ({_listed(classes)}) in one of its splits")
    taken = index if len(rows) == len(index) else index.take(rows)
    return dataclasses.replace(taken, classes=classes, labels=labels[rows])


def _renamed(lines: Sequence[str], classes: Collection[str]) -> dict[str, str]:
    """The new name of each class that `lines` name. Raises RecipeError for a class that is named twice."""
    names: dict[str, str] = {}
    for line in lines:
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        old, new = (line, line) if line in classes or len(words) > 2 else (words[0], words[-1])
        if old in names:
            raise RecipeError(KEY, f"names {old} twice", _FORM)
        names[old] = new
    return names


def _with_classes_of_both(train: Index, val: Index) -> tuple[Index, Index]:
    """Both with the classes of train, if those of val are the first of them.

    That is so where labels have no names: the classes are then the numbers up to the largest label of a split.
    """
    num = len(val.classes)
    if num < len(train.classes) and train.classes[:num] == val.classes == tuple(map(str, range(num))):
        return train, dataclasses.replace(val, classes=train.classes)
    return train, val


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:_NAMED])}{f' and {len(classes) - _NAMED:,} more' if len(classes) > _NAMED else ''}"

"""What has changed between two indices of a split: which images are new, missing, or have other content."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_dist.data.index.columns import Texts
from resnet_dist.data.index.parts import COLUMNS
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.sources import remote_folder
from resnet_dist.data.sources.image_folder import without_sub_folders
from resnet_dist.errors import DataError
from resnet_dist.object_stores import is_address

_NAMED = 3  # images in a message, of each kind of change


def changes(before: Index, now: Index) -> str:
    """What has changed, for a person, such as `2 images are new, for example ...`; empty if nothing has.

    Compared are names, classes, labels, sizes in pixels, and what `Index.contents` compares, if both indices know it.
    """
    old_names, new_names = Texts.of(before.paths), Texts.of(now.paths)
    found, in_order, old, new = [], True, before, now
    if old_names != new_names:
        rows = {name: row for row, name in enumerate(old_names)}
        numbers = np.array([rows.pop(name, -1) for name in new_names], dtype=np.int64)
        same_now = np.flatnonzero(numbers >= 0)
        same_before = numbers[same_now]
        found.append(_said(new_names, np.flatnonzero(numbers < 0).tolist(), "new"))
        found.append(_said(old_names, sorted(rows.values()), "missing"))
        if not len(same_now):
            return "; ".join(found)
        in_order = bool(np.all(np.diff(same_before) > 0))
        old, new = before.take(same_before), now.take(same_now)
    other_content = (old.heights != new.heights) | (old.widths != new.widths)
    if len(old.tails) and len(new.tails):
        other_content |= (old.tails != new.tails) | (old.num_bytes != new.num_bytes)
    found.append(_said(new.paths, np.flatnonzero(other_content).tolist(), "of other content"))
    if before.classes != now.classes:
        found.append(f"the classes were {_some(before.classes)}, and are {_some(now.classes)}")
    elif not np.array_equal(old.labels, new.labels):
        found.append(_said(new.paths, np.flatnonzero(old.labels != new.labels).tolist(), "of another class"))
    if not in_order:
        found.append("the images are in another order")
    return "; ".join(text for text in found if text)


def as_it_began(before: Index, now: Index, *, newly_broken: bool) -> Index:
    """`now`, with what `before` has of images that were broken then, and, if `newly_broken`, of those that are now.

    A run goes on with the images that it began with: one that it leaves out stays out, although it was repaired, and
    one that has become broken is found when it is decoded. Only for indices of the same names.
    """
    kept = np.array(before.kinds == Kind.BROKEN)
    if newly_broken:
        kept |= now.kinds == Kind.BROKEN
    rows = np.flatnonzero(kept)
    if not len(rows):
        return now
    merged: dict[str, Any] = {}
    for name in COLUMNS:
        old, column = getattr(before, name), np.array(getattr(now, name))
        if len(old) and len(column):
            column[rows] = old[rows]
        merged[name] = column
    others = {row: text for row, text in now.problems.items() if not kept[row]}
    problems = others | {row: text for row, text in before.problems.items() if kept[row]}
    return dataclasses.replace(now, **merged, problems=dict(sorted(problems.items())))


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


def _said(names: Sequence[str], rows: list[int], what: str) -> str:
    if not rows:
        return ""
    images = "1 image is" if len(rows) == 1 else f"{len(rows):,} images are"
    return f"{images} {what}: {_some([names[row] for row in rows[:_NAMED]], len(rows))}"


def _some(names: Sequence[str], num: int | None = None) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:_NAMED]]
    return f"{', '.join(shown)}{' ...' if (len(names) if num is None else num) > len(shown) else ''}"


def is_current(index: Index) -> bool:
    """Whether the folders of an index have the same modification times as when it was created.

    Files are not checked: overwriting one in place is not detected here, but decoding compares it with the recorded
    size. An index without folder times (from a user's source) is never current.
    """
    if not index.folder_times_ns:
        return False
    if is_address(index.root):
        return remote_folder.is_current(index)
    root = Path(index.root)
    try:
        return all((root / name).stat().st_mtime_ns == time_ns for name, time_ns in index.folder_times_ns.items())
    except OSError:
        return False

"""What has changed between two indices of a split: which images are new, missing or changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_dist.data.index.columns import Texts
from resnet_dist.data.index.parts import COLUMNS
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.names import some
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
    found.append(_said(new.paths, np.flatnonzero(other_content).tolist()))
    if before.classes != now.classes:
        found.append(f"the classes were {some(before.classes)}, and are {some(now.classes)}")
    elif not np.array_equal(old.labels, new.labels):
        found.append(_said(new.paths, np.flatnonzero(old.labels != new.labels).tolist(), "of another class"))
    if not in_order:
        found.append("the images are in another order")
    return "; ".join(text for text in found if text)


def as_it_began(before: Index, now: Index, known_bad: Collection[str] = ()) -> Index:
    """`now`, with what `before` has of the images that are broken in one of them, or whose names are in `known_bad`.

    A run goes on with the images that it began with: one that it leaves out stays out, although it was repaired; one
    that has become broken is found when it is decoded; and those in `known_bad` are not read, whatever they are now, or
    if their files are gone. `now` itself if other images are missing or new.
    """
    now = _with_missing(before, now, known_bad)
    if Texts.of(before.paths) != Texts.of(now.paths):
        return now
    kept = np.array((before.kinds == Kind.BROKEN) | (now.kinds == Kind.BROKEN))
    if known_bad:
        kept |= np.fromiter((name in known_bad for name in before.paths[:]), bool, len(before))
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


def _with_missing(before: Index, now: Index, known_bad: Collection[str]) -> Index:
    """`now` with the samples of `before` that are files in `known_bad` and are gone, where they were.

    `now` itself if anything else is missing or new. The new index has no times of folders: it is no list of the folders
    any more, so no other run takes it for one.
    """
    if now.shards or before.shards or len(now) >= len(before) or before.classes != now.classes:
        return now
    rows = {name: row for row, name in enumerate(now.paths[:])}
    numbers = np.array([rows.get(name, -1) for name in before.paths[:]], dtype=np.int64)
    gone = np.flatnonzero(numbers < 0)
    if len(before) - len(gone) != len(now) or any(before.paths[row] not in known_bad for row in gone.tolist()):
        return now
    filled = now.take(np.maximum(numbers, 0))  # `as_it_began` replaces what row 0 gives to those that are gone
    labels = np.where(numbers < 0, before.labels, filled.labels)
    return dataclasses.replace(filled, paths=before.paths, labels=labels, folder_times_ns={})


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


def _said(names: Sequence[str], rows: list[int], what: str = "") -> str:
    """`2 images are WHAT: NAMES`, or without `what`: have changed; empty without rows."""
    if not rows:
        return ""
    one, more = (f"is {what}", f"are {what}") if what else ("has changed", "have changed")
    images = f"1 image {one}" if len(rows) == 1 else f"{len(rows):,} images {more}"
    return f"{images}: {some([names[row] for row in rows[:_NAMED]], len(rows))}"


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

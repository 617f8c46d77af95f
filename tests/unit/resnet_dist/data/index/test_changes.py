"""What has changed between two indices, in words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from resnet_dist.data import Index
from resnet_dist.data.index.changes import as_it_began, changes
from resnet_dist.data.index.table import Kind

BEFORE = Index(
    "/data", ("ant", "bee"), ("a", "b", "c", "d"), np.array([0, 0, 1, 1]), np.arange(4) + 9, np.arange(4) + 9,
    num_bytes=np.arange(4), tails=np.arange(4), kinds=np.ones(4),
)  # fmt: skip


def changed(**columns: object) -> Index:
    return dataclasses.replace(BEFORE, **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (changed(root="/elsewhere", times_ns=np.arange(4)), ""),
        (changed(kinds=np.full(4, Kind.PILLOW)), ""),
        (changed(tails=np.array([0, 1, 9, 3])), "1 image has changed: c"),
        (changed(num_bytes=np.zeros(4)), "3 images have changed: b, c, d"),
        (changed(num_bytes=np.zeros(0), tails=np.zeros(0)), ""),  # unknown
        (changed(heights=np.full(4, 5)), "4 images have changed: a, b, c ..."),
        (changed(labels=np.array([0, 1, 1, 1])), "1 image is of another class: b"),
        (changed(classes=("ant", "cat")), "the classes were ant, bee, and are ant, cat"),
        (changed(paths=("a", "b", "c", "e\n")), r"1 image is new: 'e\n'; 1 image is missing: d"),
        (changed(paths=("e", "f", "g", "h")), "4 images are new: e, f, g ...; 4 images are missing: a, b, c ..."),
        (BEFORE.take(np.array([1, 2])), "2 images are missing: a, d"),
        (BEFORE.take(np.array([1, 0, 2, 3])), "the images are in another order"),
    ],
    ids=[
        "root", "kind", "tail", "bytes", "unknown", "pixels", "label", "classes", "name", "all names", "fewer", "order",
    ],
)  # fmt: skip
def test_changes_are_counted_and_named(now: Index, expected: str) -> None:
    assert changes(BEFORE, now) == expected


def test_broken_images_stay_as_they_were() -> None:
    before = changed(kinds=np.array([1, 3, 1, 1]), heights=np.array([9, 1, 11, 12]), problems={1: "is empty"})
    now = changed(kinds=np.array([1, 1, 1, 3]), heights=np.array([9, 10, 11, 1]), problems={3: "is gone"})
    went_on = as_it_began(before, now)
    assert (went_on.kinds.tolist(), went_on.heights.tolist(), went_on.problems) == (
        [1, 3, 1, 1], [9, 1, 11, 12], {1: "is empty"},
    )  # fmt: skip
    assert as_it_began(BEFORE, BEFORE) is BEFORE


def test_known_images_may_change_or_be_gone() -> None:
    before = changed(problems={0: "is empty"}, kinds=np.array([3, 1, 1, 1]))
    now = changed(tails=np.array([0, 9, 9, 3]), problems={0: "is cut"}, kinds=np.array([3, 1, 1, 1]))
    assert changes(before, as_it_began(before, now, {"b", "c"})) == ""
    assert changes(before, as_it_began(before, now, {"b"})) == "1 image has changed: c"
    fewer = now.take(np.array([0, 1]))
    went_on = as_it_began(before, fewer, {"b", "c", "d"})
    assert changes(before, went_on) == ""
    for column in ("paths", "labels", "heights", "tails", "kinds"):
        assert list(getattr(went_on, column)) == list(getattr(before, column))
    assert (went_on.problems, went_on.folder_times_ns) == ({0: "is empty"}, {})
    assert as_it_began(before, fewer, {"b", "c"}) is fewer  # d is missing
    other = changed(paths=("a", "b", "e", "f")).take(np.array([0, 1, 2]))
    assert as_it_began(before, other, {"c", "d"}) is other  # e is new

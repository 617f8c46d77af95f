from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from launcher.prepare.checked_images import write_bad_list
from resnet_dist.data import Index
from resnet_dist.data.index.table import Kind
from resnet_dist.data.sources.known_bad import known_names, line_of, unlisted_broken, with_known_bad
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import DataRecipe


def names_in(tmp_path: Path, text: str, root: str = "/data") -> frozenset[str]:
    file = tmp_path / "bad.txt"
    file.write_text(text)
    return known_names(DataRecipe(root=root, known_bad=str(file)))


def test_a_line_is_a_name_relative_to_the_root(tmp_path: Path) -> None:
    text = "# broken since May\n\ntrain/ant/0.jpg\n  ./val/a b/1.jpg  \n/data/train/cat/2.jpg\n"
    assert names_in(tmp_path, text) == {"train/ant/0.jpg", "val/a b/1.jpg", "train/cat/2.jpg"}
    assert known_names(DataRecipe(root="/data")) == frozenset()


NAMES = (
    "#1.jpg",
    '"a" b.jpg',
    " a.jpg",
    "a.jpg ",
    "a\nb.jpg",
    "a\rb.jpg",
    "a\x0bb\x1c.jpg",
    "ä\u2028.jpg",
    "\udcff.jpg",
    "a\x85",
)


@pytest.mark.parametrize("name", NAMES, ids=map(ascii, NAMES))
def test_any_name_that_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_bad_list(tmp_path / "bad.txt", "/data\nx", ["first", name])
    assert known_names(DataRecipe(root="/data", known_bad=str(tmp_path / "bad.txt"))) == {"first", name}


def test_ordinary_names_need_no_quotes() -> None:
    assert [line_of(name) for name in ("train/a b/1.jpg", 'a "b".jpg', "a#b")] == [
        "train/a b/1.jpg",
        'a "b".jpg',
        "a#b",
    ]


def test_a_sample_in_a_shard_is_named_as_in_messages(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("/data/a/train-0.tar: train/ant/0.jpg\ntrain-1.parquet: row 7\n12\n")
    data = DataRecipe(root="/data", source="webdataset", known_bad=str(tmp_path / "bad.txt"))
    assert known_names(data) == {"train/ant/0.jpg", "row 7", "12"}


def test_a_file_that_cannot_be_read_is_an_error_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.known_bad: .*none.txt cannot be read: No such file"):
        known_names(DataRecipe(root="/data", known_bad=str(tmp_path / "none.txt")))


def test_listed_images_of_both_splits_become_broken_and_keep_their_ids(train_index: Index, val_index: Index) -> None:
    train, val = with_known_bad((train_index, val_index), {"train/bee/2.jpg", "val/ant/1.jpg"})
    assert [train.paths[row] for row in np.flatnonzero(train.kinds == Kind.BROKEN)] == ["train/bee/2.jpg"]
    assert [val.paths[row] for row in np.flatnonzero(val.kinds == Kind.BROKEN)] == ["val/ant/1.jpg"]
    assert train.fingerprint() == train_index.fingerprint()
    assert Kind.BROKEN not in train_index.kinds
    assert unlisted_broken(train, ()) == {"train/bee/2.jpg": "is known to be broken"}
    assert unlisted_broken(train, {"train/bee/2.jpg"}) == {}
    found = dataclasses.replace(train, problems={6: "is truncated"})
    assert unlisted_broken(found, ()) == {"train/bee/2.jpg": "is truncated"}


def test_names_that_are_no_images_are_noted_with_the_nearest_one(
    train_index: Index, val_index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        with_known_bad((train_index, val_index), {"train/bee/2.jpeg", "train/dog/9.jpg", "val/ant/1.jpg"}, warn=True)
    assert caplog.messages == [
        "data.known_bad: 2 of 3 names are not in the data set: train/bee/2.jpeg, train/dog/9.jpg. Nearest to the first:"
        " train/bee/2.jpg"
    ]

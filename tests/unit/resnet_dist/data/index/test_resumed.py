"""A run that is resumed after images were damaged, changed or deleted: what `data.known_bad` lists does not stop it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data import Index
from resnet_dist.data.index import shared as shared_index
from resnet_dist.data.index.shared import check_same_data, facts_of_data, index_file, shared_indices
from resnet_dist.data.index.table import Kind
from resnet_dist.data.sources.known_bad import known_names, with_known_bad
from resnet_dist.errors import DataError, RecipeError, StorageError
from resnet_dist.recipe.schema import DataRecipe

NAME = "train/bee/1.jpg"


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def started(data: DataRecipe, folder: Path, name: str = "run", *, resumed: bool = False) -> tuple[Index, Index]:
    shared = folder.parent / ".indices"
    return shared_indices(data, 3, 0, 1, folder.parent / name / "index", shared, resumed=resumed)


def listing(data: DataRecipe, folder: Path, *names: str) -> DataRecipe:
    file = folder.parent / "bad.txt"
    file.write_text("".join(f"{name}\n" for name in names))
    return dataclasses.replace(data, known_bad=str(file))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def alter(file: Path) -> None:
    """Other bytes at the end of an image that is whole."""
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("on_error", ["fail", "replace"])
@pytest.mark.parametrize("harm", [cut, alter, Path.unlink], ids=["cut", "altered", "deleted"])
def test_an_image_that_was_harmed_in_mid_run_is_left_out_once_it_is_listed(
    folder: Path, harm: Callable[[Path], None], on_error: str
) -> None:
    data = DataRecipe(root=str(folder), on_error=on_error)  # type: ignore[arg-type]
    train, val = started(data, folder)
    facts = facts_of_data(train, val)
    harm(folder / NAME)
    if on_error == "fail" or harm is not cut:
        with pytest.raises(DataError, match=r"is truncated|list those that are missing or changed in data\.known_bad"):
            started(data, folder, resumed=True)
    listed = listing(data, folder, NAME)
    for _ in range(2):  # the second start finds what the first has saved
        resumed = started(listed, folder, resumed=True)
        check_same_data(facts_of_data(*resumed), facts, 7, resumed[0])
        assert list(resumed[0].paths) == list(train.paths)
        assert resumed[0].labels.tolist() == train.labels.tolist()
        marked, _ = with_known_bad(resumed, known_names(listed))
        assert np.flatnonzero(marked.kinds == Kind.BROKEN).tolist() == [list(train.paths).index(NAME)]
    with pytest.raises(DataError, match=r"is truncated|1 image (has changed|is missing): train/bee/1\.jpg"):
        started(dataclasses.replace(data, on_error="fail"), folder, resumed=True)  # it is listed no more


def test_a_deleted_image_of_a_resumed_run_is_not_in_the_index_of_new_runs(folder: Path) -> None:
    data = DataRecipe(root=str(folder))
    started(data, folder)
    (folder / NAME).unlink()
    listed = listing(data, folder, NAME)
    assert len(started(listed, folder, resumed=True)[0]) == 12
    shutil.rmtree(folder.parent / ".indices")
    assert len(started(listed, folder, resumed=True)[0]) == 12
    assert len(started(data, folder, "new")[0]) == 11


def test_what_is_not_listed_is_still_refused(folder: Path) -> None:
    data = DataRecipe(root=str(folder))
    started(data, folder)
    (folder / NAME).unlink()
    shutil.copy(folder / "train/cat/0.jpg", folder / "train/cat/new.jpg")
    alter(folder / "train/ant/0.jpg")
    found = "1 image is new: train/cat/new.jpg; 1 image is missing: train/bee/1.jpg; 1 image has changed: train/ant/0"
    with pytest.raises(DataError, match=found):
        started(listing(data, folder, NAME), folder, resumed=True)
    (folder / "train/cat/new.jpg").unlink()
    with pytest.raises(DataError, match=r"since the run began: 1 image has changed: train/ant/0\.jpg\. Restore"):
        started(listing(data, folder, NAME), folder, resumed=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_broken_image_of_a_class_that_is_not_used_stops_nothing(folder: Path, resumed: bool) -> None:
    classes = folder.parent / "classes.txt"
    classes.write_text("ant\ncat\n")
    data = DataRecipe(root=str(folder), classes=str(classes))
    if resumed:
        started(data, folder)
    cut(folder / NAME)
    assert len(started(data, folder, resumed=resumed)[0]) == 8
    cut(folder / "train/ant/0.jpg")
    with pytest.raises(DataError, match=r"ant/0\.jpg: is truncated.*"):
        started(data, folder, resumed=resumed)


def test_workers_agree_about_more_than_names_and_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_index, "VISIBLE_S", -1.0)
    started(DataRecipe(root=str(folder)), folder)
    file = index_file(folder.parent / "run" / "index", "train")
    saved = Index.load(file)
    assert shared_index._loaded(file, saved.digest(), 1).digest() == saved.digest()
    for column in ("tails", "num_bytes", "times_ns", "kinds", "orientations"):
        values = np.array(getattr(saved, column))
        values[3] += 1
        stale = dataclasses.replace(saved, **{column: values})  # type: ignore[arg-type]
        assert stale.fingerprint() == saved.fingerprint()
        with pytest.raises(StorageError, match=r"is not the index that rank 0 has written, after -1 s, on rank 1"):
            shared_index._loaded(file, stale.digest(), 1)


def test_exif_is_refused_where_a_users_source_has_no_orientations(
    train_index: Index, val_index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = dataclasses.replace(train_index, orientations=np.array([6] + 11 * [1]))
    found = {"train": train_index, "val": val_index}
    monkeypatch.setattr("resnet_dist.data.index.made.index_of", lambda data, split: found[split])
    data = DataRecipe(root=str(folder), source="my_data:images", exif="apply")
    with pytest.raises(RecipeError, match=r"data\.exif: is apply, and my_data:images returns an Index without"):
        started(data, folder)
    found["train"] = turned
    assert started(data, folder)[0].widths[0] == train_index.heights[0]

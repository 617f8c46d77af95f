"""Which index a run uses: a saved one, or a new one."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.image_folder import without_sub_folders
from resnet_dist.data.shared_index import SPLITS, index_file, saved_index, shared_indices
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The run's folder of indices."""
    return tmp_path / "index"


def started(folder: Path, saved: Path, *, num_classes: int = 3, resumed: bool = False) -> tuple[Index, Index]:
    return shared_indices(DataRecipe(root=str(folder)), num_classes, 0, 1, saved, resumed=resumed)


def save_as_version_0_1(index: Index, file: Path) -> None:
    """Save `index` in format 1, which has no source and no notes."""
    index.save(file)
    with np.load(file) as columns:
        kept = {name: columns[name] for name in columns.files if name not in ("source", "notes")}
    with file.open("wb") as stream:
        np.savez(stream, **(kept | {"format": np.array(1)}))


def touch(folder: Path) -> None:
    """Another modification time: file systems may be too coarse for two changes in a row."""
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))


def test_a_second_start_reads_no_header_again(folder: Path, saved: Path) -> None:
    first = started(folder, saved)
    (folder / "train" / "ant" / "0.jpg").write_bytes(b"no image any more")  # does not change the folder's time
    second = started(folder, saved)
    assert [index.fingerprint() for index in first] == [index.fingerprint() for index in second]


def test_an_index_is_used_only_for_its_own_root_source_and_content(folder: Path, saved: Path, tmp_path: Path) -> None:
    started(folder, saved)
    data = DataRecipe(root=str(folder))
    for split in SPLITS:
        assert saved_index(data, split, saved) is not None
        assert saved_index(dataclasses.replace(data, root=str(tmp_path / "other")), split, saved) is None
        assert saved_index(dataclasses.replace(data, source="my_data:source"), split, saved) is None
        assert saved_index(data, split, tmp_path / "nothing here") is None
    touch(folder / "val" / "cat")
    assert [saved_index(data, split, saved) is None for split in SPLITS] == [False, True]
    touch(folder / "train")
    assert [saved_index(data, split, saved) is None for split in SPLITS] == [True, True]


def test_a_damaged_index_is_created_again(folder: Path, saved: Path) -> None:
    started(folder, saved)
    index_file(saved, "train").write_bytes(b"torn")
    assert saved_index(DataRecipe(root=str(folder)), "train", saved) is None
    assert len(started(folder, saved)[0]) == 12


def test_what_is_left_out_is_logged_at_every_start(folder: Path, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "val" / "ant" / "notes.txt").touch()
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            started(folder, saved, num_classes=5)
        left_out, fewer = caplog.messages
        assert left_out == f"{folder}/val: left out files without the suffix of an image: 1, for example ant/notes.txt"
        assert fewer.startswith(f"{folder}: has 3 classes and the model predicts 5")


def test_labels_outside_of_the_model_are_refused(folder: Path, saved: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 12 images have labels of 2 or more, for example train/cat/0\.jpg"):
        started(folder, saved, num_classes=2)


def test_the_number_of_training_samples_is_verified_also_of_a_saved_index(folder: Path, saved: Path) -> None:
    data = DataRecipe(root=str(folder), num_samples=12)
    assert len(shared_indices(data, 3, 0, 1, saved)[0]) == 12
    with pytest.raises(RecipeError, match=r"data\.num_samples: is 13, but .* has 12 images"):
        shared_indices(dataclasses.replace(data, num_samples=13), 3, 0, 1, saved)


@pytest.mark.parametrize("split", SPLITS)
def test_a_run_of_version_0_1_that_left_out_images_in_sub_folders_is_refused(
    folder: Path, saved: Path, split: str
) -> None:
    sub_folder = folder / split / "bee" / "more"
    sub_folder.mkdir()
    shutil.copy(folder / split / "bee" / "0.jpg", sub_folder / "0.jpg")
    for name in SPLITS:
        index = index_image_folder(str(folder), name)
        save_as_version_0_1(without_sub_folders(index) or index, index_file(saved, name))
    found = rf"images in sub-folders of class folders: 1, for example {split}/bee/more/0\.jpg\. The run began without"
    for _ in range(2):  # the refusal does not change what the next start finds
        with pytest.raises(DataError, match=found):
            started(folder, saved, resumed=True)
    shutil.rmtree(sub_folder)
    assert [len(index) for index in started(folder, saved, resumed=True)] == [12, 6]


def test_a_run_of_version_0_1_without_sub_folders_continues(folder: Path, saved: Path) -> None:
    before = {split: index_image_folder(str(folder), split) for split in SPLITS}
    for split in SPLITS:
        save_as_version_0_1(before[split], index_file(saved, split))
    after = started(folder, saved, resumed=True)
    assert [index.fingerprint() for index in after] == [before[split].fingerprint() for split in SPLITS]

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from resnet_dist.data.image_folder import index_image_folder
from resnet_dist.data.index import Index
from resnet_dist.errors import DataError


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def problem_of(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        index_image_folder(str(folder), "train")
    return caught.value


def test_samples_are_sorted_by_class_and_name(train_index: Index) -> None:
    assert train_index.classes == ("ant", "bee", "cat")
    assert tuple(train_index.paths) == tuple(f"train/{name}/{i}.jpg" for name in train_index.classes for i in range(4))
    assert train_index.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_sizes_are_those_that_pillow_sees(train_index: Index) -> None:
    for sample_id in range(len(train_index)):
        with Image.open(train_index.path(sample_id)) as image:
            assert (image.height, image.width) == (train_index.heights[sample_id], train_index.widths[sample_id])


def test_val_is_indexed_alike(val_index: Index, train_index: Index) -> None:
    assert val_index.classes == train_index.classes
    assert val_index.paths[0] == "val/ant/0.jpg"
    assert len(val_index) == 6


def test_other_files_are_left_out_with_one_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    clean = index_image_folder(str(folder), "train").fingerprint()
    (folder / "train" / "ant" / "notes.txt").write_text("x")
    (folder / "train" / "ant" / ".hidden.jpg").write_text("x")
    (folder / "train" / "bee" / "more").mkdir()
    (folder / "train" / ".cache").mkdir()
    with caplog.at_level(logging.WARNING):
        assert index_image_folder(str(folder), "train").fingerprint() == clean
    [record] = caplog.records
    assert "ignored 3 entries" in record.getMessage()
    assert "train/ant/notes.txt" in record.getMessage()


def test_a_folder_without_oddities_gives_no_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    index_image_folder(str(folder), "train")
    assert caplog.records == []


def test_a_missing_root_is_named_with_the_expected_layout(tmp_path: Path) -> None:
    error = problem_of(tmp_path / "nowhere")
    assert error.path == str(tmp_path / "nowhere" / "train")
    assert "expected ROOT/train/CLASS/*.jpg" in error.problem
    assert "does not exist either" in error.problem


def test_a_missing_split_says_what_was_found(folder: Path) -> None:
    (folder / "train").rename(folder / "training")
    assert "contains training, val" in problem_of(folder).problem


def test_a_split_without_class_folders_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.jpg").write_text("x")
    error = problem_of(tmp_path)
    assert "has no class folder" in error.problem
    assert "it contains 0.jpg" in error.problem


def test_a_class_without_images_is_named(folder: Path) -> None:
    for file in (folder / "train" / "bee").iterdir():
        file.rename(file.with_suffix(".txt"))
    error = problem_of(folder)
    assert error.path == str(folder / "train" / "bee")
    assert "without images" in error.problem


def test_a_class_that_only_one_split_has_is_named(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder / "val" / "dog")
    assert "only in train: cat (1); only in val: dog (1)" in problem_of(folder).problem


def test_train_alone_can_be_indexed(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    assert len(index_image_folder(str(folder), "train")) == 12


def test_one_broken_file_is_named(folder: Path) -> None:
    broken = folder / "train" / "bee" / "2.jpg"
    broken.write_text("404 not found")
    error = problem_of(folder)
    assert error.path == str(broken)
    assert "is not an image" in error.problem


def test_of_many_broken_files_five_are_named_and_all_counted(folder: Path) -> None:
    for file in (folder / "train").glob("*/[012].jpg"):
        file.write_bytes(b"")
    error = problem_of(folder)
    assert error.path == str(folder / "train" / "ant" / "0.jpg")
    assert "first of 9 broken files" in error.problem
    assert error.problem.count("is empty") == 5
    assert error.problem.endswith("and 4 more")

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.prepare import digits as prepare
from resnet_dist.data import index_image_folder
from resnet_dist.errors import DataError, MissingPackage

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Path -> content and modification time of every file."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in snapshot(folder).items()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare.write_digits(tmp_path_factory.mktemp("sklearn") / "digits")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn digits, ten of each: tests of writing need no more."""
    monkeypatch.setattr(prepare, "_DRAWN_PER_CLASS", 10)


@needs_sklearn
def test_scikit_learns_digits_are_split_1442_to_355(digits: Path) -> None:
    train, val = index_image_folder(str(digits), "train"), index_image_folder(str(digits), "val")
    assert (len(train), len(val)) == (1442, 355)
    assert train.classes == tuple("0123456789")
    # Every fifth image of each class: all classes have their share, in proportion.
    assert np.bincount(val.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert set(train.heights) | set(train.widths) | set(val.heights) | set(val.widths) == {32}


@needs_sklearn
def test_the_fifth_image_of_a_class_is_the_first_of_val(digits: Path) -> None:
    assert sorted(file.name for file in (digits / "val" / "3").iterdir())[:2] == ["0004.jpg", "0009.jpg"]
    assert sorted(file.name for file in (digits / "train" / "3").iterdir())[:5] == [
        "0000.jpg",
        "0001.jpg",
        "0002.jpg",
        "0003.jpg",
        "0005.jpg",
    ]


@needs_sklearn
def test_images_show_the_digits_of_scikit_learn(digits: Path) -> None:
    from sklearn.datasets import load_digits

    first = load_digits().images[0]  # a zero, 8 × 8, in 0..16
    with Image.open(digits / "train" / "0" / "0000.jpg") as image:
        assert image.mode == "RGB"
        small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float) / 255 * 16
    assert np.corrcoef(small.ravel(), first.ravel())[0, 1] > 0.97


@needs_sklearn
def test_writing_again_keeps_a_complete_folder(digits: Path) -> None:
    before = snapshot(digits)
    assert prepare.write_digits(digits) == digits
    assert snapshot(digits) == before


def test_drawn_digits_are_split_1440_to_360(tmp_path: Path) -> None:
    folder = prepare.write_drawn_digits(tmp_path / "digits")
    train, val = index_image_folder(str(folder), "train"), index_image_folder(str(folder), "val")
    assert np.bincount(train.labels).tolist() == [144] * 10
    assert np.bincount(val.labels).tolist() == [36] * 10


def test_drawn_digits_are_the_same_at_every_call_and_no_two_alike(tmp_path: Path, few: None) -> None:
    one = contents(prepare.write_drawn_digits(tmp_path / "one"))
    assert contents(prepare.write_drawn_digits(tmp_path / "two")) == one
    assert len(set(one.values())) == len(one) == 101  # 100 images and the marker


@pytest.mark.parametrize("damage", ["delete an image", "change an image", "add an image", "break the marker"])
def test_an_incomplete_folder_is_written_again(damage: str, tmp_path: Path, few: None) -> None:
    folder = prepare.write_drawn_digits(tmp_path / "digits")
    whole = contents(folder)
    victim = folder / "train" / "4" / "0001.jpg"
    if damage == "delete an image":
        victim.unlink()
    elif damage == "change an image":
        victim.write_bytes(b"x")
    elif damage == "add an image":
        (folder / "train" / "4" / "9999.jpg").write_bytes(victim.read_bytes())
    else:
        (folder / "digits.json").write_text("{")
    prepare.write_drawn_digits(folder)
    assert contents(folder) == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Iterator[tuple[Image.Image, int]]:
        yield Image.new("L", (32, 32)), 0
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_drawn_digits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.write_drawn_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not empty and was not written by `prepare digits`; choose another folder"):
        prepare.write_drawn_digits(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_empty_folder_is_filled(tmp_path: Path, few: None) -> None:
    assert len(contents(prepare.write_drawn_digits(tmp_path))) == 101


def test_without_scikit_learn_the_demo_draws_its_digits_and_says_so(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder, label = prepare.write_demo_images(tmp_path / "digits")
    assert label == (
        "digits drawn with Pillow's font (scikit-learn is not installed): 80 images for training, 20 for evaluation"
    )
    assert json.loads((folder / "digits.json").read_text())["source"] == "drawn"
    with pytest.raises(MissingPackage, match="scikit-learn"):
        prepare.write_digits(tmp_path / "other")


@needs_sklearn
def test_with_scikit_learn_the_demo_takes_its_digits_and_says_so(digits: Path) -> None:
    assert prepare.write_demo_images(digits) == (
        digits,
        "scikit-learn's handwritten digits: 1442 images for training, 355 for evaluation",
    )

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher import cli
from launcher.prepare import idx as prepare_idx
from launcher.prepare.idx import CLASSES, write_fashion_mnist
from resnet_dist.data import index_image_folder
from resnet_dist.errors import DataError

NUM = {"train": 30, "t10k": 10}


def pixels(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(num, 28, 28), dtype=np.uint8)


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """An IDX file, written as the format's page says."""
    magic = 0x0800 + array.ndim if magic is None else magic
    return np.array([magic, *array.shape], dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of IDX files: train gzipped, the test split not. Labels repeat 0..9."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, num in NUM.items():
        labels = np.arange(num, dtype=np.uint8) % 10
        for name, array in (("images-idx3-ubyte", pixels(num, num)), ("labels-idx1-ubyte", labels)):
            if prefix == "train":
                (folder / f"{prefix}-{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / f"{prefix}-{name}").write_bytes(idx(array))
    return folder


def test_every_image_is_written_without_loss_under_the_name_of_its_class(source: Path, tmp_path: Path) -> None:
    folder = write_fashion_mnist(tmp_path / "images", source)
    for split, num in (("train", 30), ("val", 10)):
        for number, image in enumerate(pixels(num, num)):
            with Image.open(folder / split / CLASSES[number % 10] / f"{number:05d}.png") as written:
                assert written.mode == "L"
                np.testing.assert_array_equal(np.asarray(written), image)
        assert len(index_image_folder(str(folder), split)) == num  # type: ignore[arg-type]  # and nothing else
    marker = json.loads((folder / "fashion-mnist.json").read_text())
    assert (marker["train"], marker["val"]) == (30, 10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["idx", "images"]


def test_a_complete_folder_is_kept_even_without_its_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_idx, "DEBIAN", tmp_path / "not-installed")
    folder = write_fashion_mnist(tmp_path / "images", source)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    for again in (source, None):
        write_fashion_mnist(folder, again)
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times


def test_other_files_are_written_in_place_of_the_first(source: Path, tmp_path: Path) -> None:
    folder = write_fashion_mnist(tmp_path / "images", source)
    (source / "t10k-images-idx3-ubyte").write_bytes(idx(pixels(10, seed=7)))
    write_fashion_mnist(folder, source)
    with Image.open(folder / "val" / CLASSES[3] / "00003.png") as written:
        np.testing.assert_array_equal(np.asarray(written), pixels(10, seed=7)[3])


def test_without_the_package_the_error_says_how_to_get_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_idx, "DEBIAN", tmp_path / "not-installed")
    assert cli.main(["prepare", "fashion-mnist", str(tmp_path / "images")]) == 65
    said = capsys.readouterr().err
    assert "apt install dataset-fashion-mnist" in said
    assert "--from DIR" in said
    assert not (tmp_path / "images").exists()


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
LABELS = np.arange(10, dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (TRAIN_IMAGES, None, "has no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz"),
        (TRAIN_IMAGES, b"not gzip", "is damaged: .*; expected a gzip file"),
        (TRAIN_IMAGES, gzip.compress(idx(pixels(30)))[:-1000], "is damaged: .*; expected a gzip file"),
        (TRAIN_LABELS, gzip.compress(b"", mtime=0), "begins with nothing; expected 00000801"),
        (TEST_IMAGES, idx(pixels(10), magic=0x0801), "begins with 00000801; expected 00000803"),
        (TEST_IMAGES, idx(pixels(10))[:10], "is truncated: it has 10 bytes; expected a header of 16"),
        (TEST_IMAGES, idx(pixels(10))[:-1], "is truncated: it has 7,855 .* expected 7,856, a header and 10 x 28 x 28"),
        (TEST_IMAGES, idx(pixels(10)) + b"x", "is too long: it has 7,857 .* expected 7,856"),
        (TEST_IMAGES, idx(pixels(10)[:, :27]), "has images of 27 x 28 pixels; expected 28 x 28"),
        (TEST_LABELS, idx(LABELS[:9]), "has 9 labels; expected 10, one for each image"),
        (TEST_LABELS, idx(LABELS + 1), "has the label 10; expected labels from 0 to 9"),
        (
            TEST_IMAGES,
            np.array([0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1], dtype=">u4").tobytes(),
            "is truncated: it has 16 .* 4294967295",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected(
    name: str, content: bytes | None, said: str, source: Path, tmp_path: Path
) -> None:
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        write_fashion_mnist(tmp_path / "images", source)
    assert caught.value.path == str(source / name if content is not None else source)
    assert not (tmp_path / "images").exists()


def test_the_exit_code_of_damaged_files_is_65(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / TEST_LABELS).write_bytes(b"x")
    assert cli.main(["prepare", "fashion-mnist", str(tmp_path / "images"), "--from", str(source)]) == 65
    assert f"error: {source / TEST_LABELS}: is not such an IDX file" in capsys.readouterr().err


def test_the_command_says_how_many_images_it_wrote(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    assert cli.main(["prepare", "fashion-mnist", str(folder), "--from", str(source)]) == 0
    assert capsys.readouterr().out == f"images in {folder}: 30 for training, 10 for evaluation\n"

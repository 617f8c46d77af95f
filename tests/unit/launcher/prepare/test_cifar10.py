from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher import cli
from launcher.prepare import cifar10 as prepare_cifar10
from launcher.prepare.cifar10 import write_cifar10
from resnet_dist.data import index_image_folder
from resnet_dist.errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDS = 10  # of a file, one of each class
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def images(number: int) -> np.ndarray:
    """uint8 [10, 32, 32, 3]: those of file `number`."""
    return np.random.default_rng(number).integers(0, 256, size=(RECORDS, 32, 32, 3), dtype=np.uint8)


def records(number: int) -> bytes:
    """A file, written as the data set's page says: the label, then all red, green and blue pixels."""
    return b"".join(
        bytes([label]) + image[..., 0].tobytes() + image[..., 1].tobytes() + image[..., 2].tobytes()
        for label, image in enumerate(images(number))
    )


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prepare_cifar10, "_RECORDS", RECORDS)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(records(number))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def test_every_image_is_written_without_loss_under_the_name_of_its_class(source: Path, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "images", source)
    for split, numbers in (("train", range(5)), ("val", [5])):
        for place, number in enumerate(numbers):
            for label, image in enumerate(images(number)):
                file = folder / split / NAMES[label] / f"{place * RECORDS + label:05d}.png"
                with Image.open(file) as written:
                    np.testing.assert_array_equal(np.asarray(written), image)
        index = index_image_folder(str(folder), split)  # type: ignore[arg-type]
        assert len(index) == RECORDS * len(numbers)
        assert index.classes == NAMES


def test_the_folder_above_that_of_the_archive_will_do(source: Path, tmp_path: Path) -> None:
    assert write_cifar10(tmp_path / "images", source.parent).is_dir()


def test_a_complete_folder_is_kept_without_its_source(source: Path, tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "images", source)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    write_cifar10(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    (folder / "val" / "cat" / "00003.png").unlink()
    with pytest.raises(DataError, match=r"is not a complete CIFAR-10\. Name the folder .* with --from DIR"):
        write_cifar10(folder)


def test_the_exit_code_without_files_is_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "cifar10", str(tmp_path / "images"), "--from", str(tmp_path / "nowhere")]) == 65
    assert "data_batch_1.bin to data_batch_5.bin, test_batch.bin and batches.meta.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data_batch_3.bin", None, "there is no such file. Name the folder of CIFAR-10's binary version"),
        (
            "data_batch_3.bin",
            records(2)[:-1],
            "is truncated: it has 30,729 bytes; expected 30,730, 10 records of 3,073",
        ),
        ("test_batch.bin", records(5) + b"x", "is too long: it has 30,731 bytes; expected 30,730"),
        ("test_batch.bin", b"\x0a" + records(5)[1:], "record 0 has the label 10; expected 0 to 9"),
        ("batches.meta.txt", b"airplane\nautomobile\n", r"has 2 names \(airplane automobile\); expected 10"),
        ("batches.meta.txt", "\n".join([*NAMES[:9], "../x"]).encode(), "has 10 names .*; expected 10 different words"),
        ("batches.meta.txt", "\n".join([*NAMES[:9], "cat"]).encode(), "has 10 names .*; expected 10 different words"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected(
    name: str, content: bytes | None, said: str, source: Path, tmp_path: Path
) -> None:
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        write_cifar10(tmp_path / "images", source)
    assert caught.value.path == str(source / name)
    assert not (tmp_path / "images").exists()

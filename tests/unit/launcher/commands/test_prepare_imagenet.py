"""`launcher prepare imagenet` with the files of a small ImageNet: see small_imagenet.py."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_imagenet import (
    IDS,
    TRAIN,
    TRUTH,
    VAL,
    Files,
    contents,
    devkit,
    expected,
    failing_after,
    jpeg,
    names,
    tar,
    write_files,
)

from launcher import cli
from launcher.prepare import imagenet_folders
from resnet_dist.data import index_image_folder
from resnet_dist.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return write_files(tmp_path)


def test_it_writes_the_folders_of_both_splits(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files.folder}/train: 15 images in 5 of ImageNet's 1,000 classes",
        f"{files.folder}/val: 11 images in 5 of ImageNet's 1,000 classes",
    ]
    for split in ("train", "val"):
        assert contents(files.folder / split) == expected(split)
    assert names(files.folder) == ["imagenet.json", "train", "val"]
    train, val = (index_image_folder(str(files.folder), split) for split in ("train", "val"))
    assert (len(train), len(val), train.notes, val.notes) == (15, 11, (), ())
    assert train.classes == val.classes == tuple(sorted(IDS.values()))


def test_splits_can_be_written_one_by_one_and_are_kept(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run("train") == 0
    assert files.run("val", "devkit") == 0
    files.train.write_bytes(bytes(files.train.stat().st_size))  # it is not read again
    capsys.readouterr()
    assert files.run() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files.folder}/train: 15 images in 5 of ImageNet's 1,000 classes, written before",
        f"{files.folder}/val: 11 images in 5 of ImageNet's 1,000 classes, written before",
    ]
    assert contents(files.folder / "train") == expected("train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_is_not_kept_for_another_tar(files: Files, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run() == 0
    file = getattr(files, split)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + bytes(512))
    assert files.run() == 65
    said = f"{split}: was written from a tar of {size:,} bytes, and {file} has {size + 512:,}. Allowed: the same file"
    assert said in capsys.readouterr().err


def test_kaggles_list_has_the_classes_as_well(files: Files) -> None:
    lines = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid in VAL.items()]
    kaggle = replace(files, devkit=files.devkit.with_name("LOC_val_solution.csv"))
    kaggle.devkit.write_text("".join(["ImageId,PredictionString\n", *lines]))
    assert kaggle.run("val", "devkit") == 0
    assert contents(files.folder / "val") == expected("val")


# --- val lies flat


@pytest.fixture
def flat(files: Files) -> Files:
    val = files.folder / "val"
    val.mkdir(parents=True)
    for number, name in enumerate(VAL):
        (val / f"{name}.JPEG").write_bytes(jpeg(number))
    return files


def test_a_flat_val_is_sorted_in_place(flat: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert flat.run("devkit") == 0
    assert contents(flat.folder / "val") == expected("val")
    assert flat.run("devkit") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("written before")


def test_the_message_about_a_flat_val_names_this_command(flat: Files) -> None:
    with pytest.raises(DataError) as caught:
        index_image_folder(str(flat.folder), "val")
    command = str(caught.value).partition("Run: launcher ")[2].split()
    assert command == ["prepare", "imagenet", str(flat.folder), "--devkit", "ILSVRC2012_devkit_t12.tar.gz"]
    assert cli.main([*command[:-1], str(flat.devkit)]) == 0
    assert len(index_image_folder(str(flat.folder), "val")) == len(VAL)


def test_an_interrupted_sort_continues(flat: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", failing_after(5, Path.rename))
    assert flat.run("devkit") == 65
    assert not (flat.folder / "val").exists()
    monkeypatch.undo()
    assert flat.run("devkit") == 0
    assert contents(flat.folder / "val") == expected("val")


def test_nothing_is_moved_if_an_image_is_missing(flat: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (flat.folder / "val" / "ILSVRC2012_val_00000004.JPEG").unlink()
    before = contents(flat.folder)
    assert flat.run("devkit") == 65
    assert "1 images are missing: ILSVRC2012_val_00000004.JPEG" in capsys.readouterr().err
    assert contents(flat.folder) == before


SHORT = devkit("\n".join(map(str, TRUTH[:8])) + "\n")  # classes of 8 of the 11 images


def test_nothing_is_moved_if_an_image_has_no_class(flat: Files, capsys: pytest.CaptureFixture[str]) -> None:
    flat.devkit.write_bytes(SHORT)
    before = contents(flat.folder)
    assert flat.run("devkit") == 65
    found = f"{flat.devkit}: has no class for 3 images in {flat.folder}/val: ILSVRC2012_val_00000009.JPEG, "
    assert found in capsys.readouterr().err
    assert contents(flat.folder) == before


def test_a_val_with_loose_images_is_not_kept_and_the_right_devkit_sorts_them(
    flat: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "ILSVRC2012_val_00000009"
    assert flat.run("devkit") == 0
    (flat.folder / "val" / VAL[name] / f"{name}.JPEG").rename(flat.folder / "val" / f"{name}.JPEG")
    assert flat.run("val", "devkit") == 65
    assert f"val: has images outside of class folders: {name}.JPEG. Sort them with" in capsys.readouterr().err
    assert flat.run("devkit") == 0
    assert not capsys.readouterr().out.endswith("written before\n")
    assert contents(flat.folder / "val") == expected("val")


def test_an_interrupted_sort_is_not_ended_by_another_devkit(
    flat: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing_after(5, Path.rename))
        assert flat.run("devkit") == 65
    whole = flat.devkit.read_bytes()
    flat.devkit.write_bytes(SHORT)
    assert flat.run("devkit") == 65
    assert "has no class for 3 images in" in capsys.readouterr().err
    flat.devkit.write_bytes(whole)
    assert flat.run("devkit") == 0
    assert contents(flat.folder / "val") == expected("val")


def test_without_a_flat_val_there_is_nothing_to_sort(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run("devkit") == 65
    assert "val: has no image ILSVRC2012_val_00000001.JPEG outside of class folders" in capsys.readouterr().err


# --- interruptions


@pytest.mark.parametrize("split", ["train", "val"])
def test_ctrl_c_is_told(
    files: Files, split: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imagenet_folders, f"_write_{split}", interrupted)
        assert files.run() == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"
    assert files.run() == 0
    assert contents(files.folder / "val") == expected("val")


@pytest.mark.parametrize("after", [0, 4, 10, 14])
def test_whole_classes_are_kept_and_the_others_are_written_again(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    monkeypatch.setattr(Path, "write_bytes", failing_after(after, Path.write_bytes))
    assert files.run() == 65
    error = capsys.readouterr().err
    assert ".JPEG: cannot be written: No space left on device. The same command continues from here" in error
    assert not (files.folder / "train").exists()
    monkeypatch.undo()
    kept = {file: file.stat().st_mtime_ns for file in (files.folder / ".train-partial").glob("n*/*")}
    assert len(kept) == after // 3 * 3
    assert files.run() == 0
    for file, time_ns in kept.items():
        assert (files.folder / "train" / file.parent.name / file.name).stat().st_mtime_ns == time_ns
    assert {split: contents(files.folder / split) for split in ("train", "val")} == {
        split: expected(split) for split in ("train", "val")
    }


@pytest.mark.parametrize("damage", ["emptied", "removed", "another tar"])
def test_a_class_that_has_changed_since_is_written_again(
    files: Files, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(Path, "write_bytes", failing_after(10, Path.write_bytes))
    assert files.run("train") == 65
    monkeypatch.undo()
    image = files.folder / ".train-partial" / "n02119789" / "n02119789_3.JPEG"
    wanted = expected("train")
    if damage == "emptied":  # as after a loss of power
        image.write_bytes(b"")
    elif damage == "removed":
        image.unlink()
    else:
        other = {**TRAIN["n02119789.tar"], "n02119789_3.JPEG": jpeg(999) + bytes(20_000)}
        files.train.write_bytes(tar({n: tar(other if n == "n02119789.tar" else i) for n, i in TRAIN.items()}))
        wanted["n02119789/n02119789_3.JPEG"] = other["n02119789_3.JPEG"]
    assert files.run("train") == 0
    assert contents(files.folder / "train") == wanted


def test_a_torn_record_of_the_classes_is_no_obstacle(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", failing_after(10, Path.write_bytes))
    assert files.run("train") == 65
    monkeypatch.undo()
    record = files.folder / ".train-finished"
    record.write_bytes(record.read_bytes()[:-9] + b"\xff\x00")
    assert files.run("train") == 0
    assert contents(files.folder / "train") == expected("train")


def test_a_killed_val_is_written_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.run("train") == 0
    monkeypatch.setattr(Path, "write_bytes", failing_after(4, Path.write_bytes))
    assert files.run() == 65
    assert not (files.folder / "val").exists()
    monkeypatch.undo()
    assert files.run() == 0
    assert contents(files.folder / "val") == expected("val")


# --- the target


def test_a_folder_of_others_is_not_touched(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (files.folder / "train" / "cat").mkdir(parents=True)
    assert files.run() == 65
    assert "train: exists, and this command has not written it" in capsys.readouterr().err
    assert names(files.folder) == ["train"]


def test_too_little_space_is_noticed_before_anything_is_written(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 10))
    assert files.run() == 65
    assert "has 10 B of free space, and the images need" in capsys.readouterr().err
    assert names(files.folder) == []


def test_a_file_system_that_is_read_only_is_named(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing_after(0, Path.mkdir, errno.EROFS))
    assert files.run() == 65
    assert f"{files.folder}: cannot be written: Read-only file system" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [((), "there is nothing to do"), (("val",), "--devkit is missing: it has the classes of the val")],
)
def test_missing_options_are_usage_errors(
    files: Files, names: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = files.arguments(*names) if names else []
    assert cli.main(["prepare", "imagenet", str(files.folder), *arguments]) == 64
    assert said in capsys.readouterr().err


def test_without_scipy_it_says_what_to_install(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert files.run() == 78
    assert "needs scipy, which is not installed here. Allowed: install it with: pip install scipy" in (
        capsys.readouterr().err
    )

"""A small ImageNet in the files of the real one: five classes, three images each in train, eleven images in val."""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher import cli
from launcher.prepare import imagenet_files, imagenet_folders
from resnet_dist.data import index_image_folder
from resnet_dist.errors import DataError

scipy_io = pytest.importorskip("scipy.io")

# In the devkit, the numbers of the classes are not in the order of their names.
IDS = {1: "n02119789", 2: "n01440764", 3: "n02100735", 4: "n02110185", 5: "n01443537"}
TRUTH = [3, 1, 5, 2, 4, 4, 1, 2, 3, 5, 1]
VAL = {f"ILSVRC2012_val_{number:08d}": IDS[label] for number, label in enumerate(TRUTH, start=1)}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


TRAIN = {
    f"{wnid}.tar": {f"{wnid}_{number}.JPEG": jpeg(100 * label + number) for number in (7, 3, 5)}
    for label, wnid in IDS.items()
}


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def meta(names: Mapping[int, str] = IDS) -> bytes:
    """synsets as in the devkit: those with a number above the classes have children."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(label, wnid, f"the {wnid}", 0) for label, wnid in names.items()] + [(6, "n00001740", "entity", 5)]
    synsets = np.array(rows, dtype=fields)[:, None]
    content = io.BytesIO()
    scipy_io.savemat(content, {"synsets": synsets}, do_compression=True)
    return content.getvalue()


def devkit(truth: str = "\n".join(map(str, TRUTH)) + "\n", mat: bytes | None = None) -> bytes:
    top = "ILSVRC2012_devkit_t12"
    files = {
        f"{top}/readme.txt": b"...",
        f"{top}/data/meta.mat": meta() if mat is None else mat,
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    return tar(files, "w:gz")


@dataclass(frozen=True)
class Files:
    """The downloaded files, and the folder to write to."""

    folder: Path
    train: Path
    val: Path
    devkit: Path

    def arguments(self, *names: str) -> list[str]:
        options = {"train": ["--train-tar", str(self.train)], "val": ["--val-tar", str(self.val)]}
        options["devkit"] = ["--devkit", str(self.devkit)]
        return [text for name in names or options for text in options[name]]

    def run(self, *names: str) -> int:
        return cli.main(["prepare", "imagenet", str(self.folder), *self.arguments(*names)])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "imagenet", tmp_path / "train.tar", tmp_path / "val.tar", tmp_path / "devkit.tar.gz")
    found.train.write_bytes(tar({name: tar(images) for name, images in TRAIN.items()}))
    found.val.write_bytes(tar({f"{name}.JPEG": jpeg(number) for number, name in enumerate(VAL)}))
    found.devkit.write_bytes(devkit())
    return found


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def expected(split: str) -> dict[str, bytes]:
    if split == "train":
        return {f"{name[:-4]}/{image}": data for name, images in TRAIN.items() for image, data in images.items()}
    return {f"{wnid}/{name}.JPEG": jpeg(number) for number, (name, wnid) in enumerate(VAL.items())}


def test_it_writes_the_folders_of_both_splits(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files.folder}/train: 15 images in 5 classes",
        f"{files.folder}/val: 11 images in 5 classes",
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
    files.train.write_bytes(files.train.read_bytes()[:1000])  # it is not read again
    capsys.readouterr()
    assert files.run() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files.folder}/train: 15 images in 5 classes, written before",
        f"{files.folder}/val: 11 images in 5 classes, written before",
    ]
    assert contents(files.folder / "train") == expected("train")


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


def test_without_a_flat_val_there_is_nothing_to_sort(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run("devkit") == 65
    assert "val: has no image ILSVRC2012_val_00000001.JPEG outside of class folders" in capsys.readouterr().err


# --- interruptions


def failing_after(calls: int, function: Callable[..., object], error: int = errno.ENOSPC) -> Callable[..., object]:
    done = 0

    def call(*arguments: object, **options: object) -> object:
        nonlocal done
        done += 1
        if done > calls:
            raise OSError(error, os.strerror(error), str(arguments[0]))
        return function(*arguments, **options)

    return call


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


# --- wrong files


def changed(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        file = getattr(files, name)
        file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))

    return change


WRONG: Mapping[str, tuple[Callable[[Files], object], str]] = {
    "no train": (lambda files: files.train.unlink(), "train.tar: cannot be read: No such file"),
    "a folder": (
        lambda files: files.train.rename(files.train.with_suffix(".old")) and files.train.mkdir(),
        "train.tar: cannot be read",
    ),
    "train compressed": (changed("train", gzip.compress), "train.tar: is no tar file"),
    "train cut in a class": (changed("train", lambda old: old[: len(old) * 2 // 3]), "train.tar: is cut short"),
    "train cut after a class": (
        changed("train", lambda old: old[: 512 + len(tar(TRAIN["n02119789.tar"]))]),
        "train.tar: is cut short or damaged (there is no mark of the end)",
    ),
    "train empty": (changed("train", tar({})), "train.tar: holds nothing"),
    "val as train": (
        changed("train", tar({"ILSVRC2012_val_00000001.JPEG": jpeg(0)})),
        "train.tar: holds 'ILSVRC2012_val_00000001.JPEG'. Allowed: one tar nNNNNNNNN.tar for each class",
    ),
    "a class cut short": (
        changed("train", tar({name: tar(images)[:1536] for name, images in TRAIN.items()})),
        "train.tar: n02119789.tar: is cut short",
    ),
    "a class missing": (
        changed("train", tar({name: tar(images) for name, images in list(TRAIN.items())[1:]})),
        "has 4 classes, and the devkit has 5; missing in the tar: n02119789; missing in the devkit: none",
    ),
    "a path": (
        changed("train", tar({name: tar({"../../x": b"..."}) for name in TRAIN})),
        "n02119789.tar: holds '../../x', which is no image",
    ),
    "val cut short": (changed("val", lambda old: old[:4000]), "val.tar: is cut short"),
    "val incomplete": (
        changed("val", tar({f"{name}.JPEG": jpeg(0) for name in list(VAL)[:-1]})),
        "val.tar: has 10 images, and the devkit has the classes of 11",
    ),
    "test as val": (
        changed("val", tar({"ILSVRC2012_test_00000001.JPEG": jpeg(0)})),
        "val.tar: holds ILSVRC2012_test_00000001.JPEG, of which the devkit has no class",
    ),
    "val twice": (changed("val", lambda old: _twice()), "holds 'ILSVRC2012_val_00000001.JPEG', twice"),
    "train as val": (changed("val", tar({"n02119789.tar": b""})), "holds 'n02119789.tar', which is no image"),
    "no devkit": (lambda files: files.devkit.unlink(), "devkit.tar.gz: cannot be read: No such file"),
    "devkit cut short": (changed("devkit", lambda old: old[: len(old) // 2]), "devkit.tar.gz: is cut short"),
    "devkit of another task": (changed("devkit", tar({"readme.txt": b""}, "w:gz")), "holds no data/ILSVRC2012_val"),
    "a wrong label": (
        changed("devkit", devkit("1\n2\n6\n")),
        "ground_truth.txt: line 3 is '6'. Allowed: a class from 1 to 5",
    ),
    "no labels": (changed("devkit", devkit("\n")), "ground_truth.txt: is empty"),
    "a damaged meta.mat": (changed("devkit", devkit(mat=b"MATLAB 5.0" * 20)), "data/meta.mat: cannot be read"),
    "names that are none": (changed("devkit", devkit(mat=meta({1: "dog"}))), "data/meta.mat: names a class 'dog'"),
}


def _twice() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG"), io.BytesIO())
    return content.getvalue()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named_and_nothing_half_written_has_a_splits_name(
    files: Files, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = WRONG[case]
    change(files)
    assert files.run() == 65
    assert said in capsys.readouterr().err
    for split in ("train", "val"):
        if (files.folder / split).exists():
            assert contents(files.folder / split) == expected(split)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ImageId\nx\n", "is no list of images and classes"),
        ("ImageId,PredictionString\n", "is no list of images and classes"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,dog 1 2 3 4\n", "is no list of images and classes"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\udcff\n", "cannot be read"),
    ],
)
def test_another_csv_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=said):
        imagenet_files.true_classes(file)


def test_the_counts_of_the_thousand_classes_are_known(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imagenet_folders.NUM_IMAGES == {"train": 1_281_167, "val": 50_000}
    monkeypatch.setattr(imagenet_folders, "NUM_CLASSES", 5)
    monkeypatch.setattr(imagenet_folders, "NUM_IMAGES", {"train": 16, "val": 11})
    assert files.run() == 65
    assert "train.tar: has 15 images of 5 classes; ImageNet's train split has 16" in capsys.readouterr().err
    assert not (files.folder / "train").exists()
    monkeypatch.setattr(imagenet_folders, "NUM_IMAGES", {"train": 15, "val": 11})
    assert files.run() == 0


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

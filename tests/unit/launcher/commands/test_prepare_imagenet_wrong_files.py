"""`launcher prepare imagenet` with files that are wrong, damaged or incomplete."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from small_imagenet import (
    TRAIN,
    VAL,
    Files,
    contents,
    devkit,
    expected,
    jpeg,
    meta,
    tar,
    write_files,
)

from launcher.prepare import imagenet_files, imagenet_folders
from resnet_dist.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return write_files(tmp_path)


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
        "n02119789.tar: holds '../../x', which is not an image",
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
    "val with more images than the devkit": (
        changed("devkit", devkit("3\n1\n5\n2\n4\n")),
        "has the classes of 5 images, and {folder}/val.tar has more: ILSVRC2012_val_00000006.JPEG. Copy or download",
    ),
    "val twice": (changed("val", lambda old: _twice()), "holds 'ILSVRC2012_val_00000001.JPEG', twice"),
    "train as val": (changed("val", tar({"n02119789.tar": b""})), "holds 'n02119789.tar', which is not an image"),
    "no devkit": (lambda files: files.devkit.unlink(), "devkit.tar.gz: cannot be read: No such file"),
    "devkit cut short": (changed("devkit", lambda old: old[: len(old) // 2]), "devkit.tar.gz: is cut short"),
    "no devkit but its meta.mat": (
        changed("devkit", meta()),
        "devkit.tar.gz: is not ILSVRC2012_devkit_t12.tar.gz, or is damaged. Copy or download it again\n",
    ),
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
    assert said.format(folder=files.folder.parent) in capsys.readouterr().err
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

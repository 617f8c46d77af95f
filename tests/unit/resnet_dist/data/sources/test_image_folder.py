from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from resnet_dist.data.index.changes import is_current
from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.by_name import index_image_folder
from resnet_dist.data.sources.image_folder import class_names
from resnet_dist.data.sources.listing import Split
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


def copied(folder: Path, name: str) -> Path:
    """A copy of an image of `folder` at train/`name`, whose folders are made."""
    target = folder / "train" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(folder / "train" / "ant" / "0.jpg", target))


def test_what_is_left_out_is_counted_with_an_example_and_nothing_else_changes(folder: Path) -> None:
    clean = index_image_folder(str(folder), "train")
    assert clean.notes == ()
    for name in ("ant/notes.txt", "bee/more/b.gif", "bee/more/a.JPEG.bak"):
        copied(folder, name)
    for name in ("ant/.hidden.jpg", "cat/.thumbnails/0.jpg", ".cache/0.jpg"):
        copied(folder, name)
    copied(folder, "labels.csv")
    copied(folder, "stray.jpg")
    index = index_image_folder(str(folder), "train")
    assert index.fingerprint() == clean.fingerprint()
    assert index.notes == (
        f"{folder}/train: left out files outside of the class folders: 2, for example labels.csv",
        f"{folder}/train: left out files without the suffix of an image: 3, for example ant/notes.txt",
        f"{folder}/train: left out hidden files or folders: 3, for example .cache",
    )


def test_a_name_that_is_no_text_is_escaped_in_a_note(folder: Path) -> None:
    copied(folder, os.fsdecode(b"ant/\x1b[31m\xe9.txt"))
    [note] = index_image_folder(str(folder), "train").notes
    assert note.endswith(r"for example 'ant/\x1b[31m\udce9.txt'")


def test_sub_folders_links_and_suffixes_are_read_in_torchvisions_order(folder: Path, tmp_path: Path) -> None:
    names = (
        "ant/a/0.jpg", "ant/a-b/0.jpg", "ant/a/b/c/d.png.jpg", "ant/a b/0.jpg", "ant/a.jpg/0.jpg", "ant/10.jpg",
        "ant/9.jpg", "ant/Z/0.jpg", "ant/z/0.JPEG", "ant/ä/图.jpg", "bee/x/y.JpG", "bee/empty/0.txt",
    )  # fmt: skip
    for name in names:
        copied(folder, name)
    copied(folder, os.fsdecode(b"cat/\xe9/0.jpg"))
    Image.new("RGB", (8, 8)).save(folder / "train" / "cat" / "x.WEBP", "webp")
    elsewhere = Path(shutil.copytree(folder / "train" / "bee", tmp_path / "elsewhere"))
    (folder / "train" / "cat" / "linked").symlink_to(elsewhere)
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "ant")
    (folder / "train" / "dog").symlink_to(elsewhere)
    (folder / "train" / "ant" / "link.jpg").symlink_to(folder / "train" / "ant" / "0.jpg")
    theirs = ImageFolder(str(folder / "train"))
    ours = index_image_folder(str(folder), "train")
    assert list(ours.classes) == theirs.classes
    assert [(ours.path(row), int(ours.labels[row])) for row in range(len(ours))] == theirs.samples


@pytest.mark.parametrize("target", [".", "..", "../..", "../bee"])
def test_a_link_to_a_folder_that_contains_it_is_refused(folder: Path, target: str) -> None:
    copied(folder, "ant/sub/0.jpg")
    (folder / "train" / "bee" / "to_ant").symlink_to("../ant")
    link = folder / "train" / "ant" / "sub" / "link"
    link.symlink_to(folder / "train" / "ant" / target)
    error = problem_of(folder)
    assert "is a link to a folder that contains it" in error.problem
    assert error.path.endswith("link" if target != "../bee" else "to_ant")


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, locked = os.scandir, folder / "train" / "bee" / "locked"
    copied(folder, "bee/locked/0.jpg")

    def refuse(path: Path) -> Any:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    error = problem_of(folder)
    assert (error.path, error.problem) == (str(locked), "cannot be read: Permission denied")


def test_a_fifo_is_no_image_and_nobody_waits_for_its_writer(folder: Path) -> None:
    fifo = folder / "train" / "bee" / "fifo.jpg"
    os.mkfifo(fifo)
    error = problem_of(folder)
    assert (error.path, error.problem) == (str(fifo), "is not a regular file; delete it")


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "dangling link": (
        lambda path: path.symlink_to("gone.jpg"),
        "cannot be read: it is a link to gone.jpg, which does not",
    ),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "link to a folder": (lambda path: path.symlink_to("../ant"), "is not a regular file"),
    "FIFO": (os.mkfifo, "is not a regular file"),
    "socket": (make_socket, "cannot be read: No such device or address"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_has_the_name_of_an_image_and_is_no_file_is_named(folder: Path, kind: str) -> None:
    make, problem = NOT_FILES[kind]
    make(folder / "train" / "bee" / "odd.jpg")
    error = problem_of(folder)
    assert error.path == str(folder / "train" / "bee" / "odd.jpg")
    assert error.problem.startswith(problem)


@pytest.mark.parametrize("kind", ["dangling link", "link to itself", "FIFO", "socket"])
@pytest.mark.parametrize("place", ["bee", "."])
def test_what_is_no_file_and_has_another_name_is_left_out_and_counted(folder: Path, kind: str, place: str) -> None:
    clean = index_image_folder(str(folder), "train")
    NOT_FILES[kind][0](folder / "train" / place / "odd")
    index = index_image_folder(str(folder), "train")
    assert index.fingerprint() == clean.fingerprint()
    [note] = index.notes
    assert note.endswith(f"1, for example {'bee/odd' if place == 'bee' else 'odd'}")


def test_a_link_to_a_folder_that_may_not_be_looked_into_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train" / "bee" / "link").symlink_to("../ant")
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

        def is_dir(self, *, follow_symlinks: bool = True) -> bool:
            if follow_symlinks:
                raise PermissionError(13, "Permission denied")
            return False

    class Entries:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> list[Any]:
            with scandir(self.path) as entries:
                return [Entry(entry) if entry.name == "link" else entry for entry in entries]

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Entries)
    error = problem_of(folder)
    assert (error.path, error.problem) == (str(folder / "train/bee/link"), "cannot be read: Permission denied")


def test_lost_and_found_is_no_class(folder: Path) -> None:
    clean = index_image_folder(str(folder), "train")
    for place in ("lost+found", "bee/lost+found"):
        (folder / "train" / place).mkdir()
    (folder / "val" / "lost+found").mkdir()
    index = index_image_folder(str(folder), "train")
    assert index.fingerprint() == clean.fingerprint()
    assert index.notes == (
        f"{folder}/train: left out folders of the file system's own repairs: 2, for example bee/lost+found",
    )
    assert class_names(str(folder), "val") == ("ant", "bee", "cat")


def test_val_takes_the_labels_of_train_and_counts_the_classes_that_it_lacks(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "ant")
    for file in (folder / "val" / "bee").iterdir():
        file.unlink()
    index = index_image_folder(str(folder), "val")
    assert index.classes == index_image_folder(str(folder), "train").classes
    assert index.labels.tolist() == [2, 2]
    assert index.notes == (f"{folder}/val: 2 of 3 classes have no images: ant, bee",)


def test_a_new_class_in_train_outdates_the_index_of_val(folder: Path) -> None:
    index = index_image_folder(str(folder), "val")
    copied(folder, "aardvark/0.jpg")
    os.utime(folder / "train", ns=(0, index.folder_times_ns["train"] + 1))
    assert not is_current(index)
    assert index_image_folder(str(folder), "val").labels.tolist() == (index.labels + 1).tolist()


def test_a_file_that_comes_into_a_sub_folder_outdates_the_index(folder: Path) -> None:
    copied(folder, "ant/deep/er/0.jpg")
    index = index_image_folder(str(folder), "train")
    assert is_current(index)
    deepest = folder / "train" / "ant" / "deep" / "er"
    os.utime(deepest, ns=(0, index.folder_times_ns["train/ant/deep/er"] + 1))
    assert not is_current(index)


def test_a_missing_root_is_named_with_the_expected_layout(tmp_path: Path) -> None:
    error = problem_of(tmp_path / "nowhere")
    assert error.path == str(tmp_path / "nowhere" / "train")
    assert "expected ROOT/train/CLASS/*.jpg" in error.problem
    assert "does not exist either" in error.problem


def test_a_missing_split_says_what_was_found(folder: Path) -> None:
    (folder / "train").rename(folder / "training")
    problem = problem_of(folder).problem
    assert "the folder above contains training, val" in problem
    assert str(folder) not in problem


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
    assert "without images; it contains 0.txt, 1.txt, 2.txt, 3.txt; known suffixes: .jpg" in error.problem


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_that_only_val_has_is_named(folder: Path, split: Split) -> None:
    (folder / "val" / "cat").rename(folder / "val" / "dog")
    with pytest.raises(DataError, match=r"only in train: cat \(1\); only in val: dog \(1\)"):
        index_image_folder(str(folder), split)


def test_train_alone_can_be_indexed(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    assert len(index_image_folder(str(folder), "train")) == 12


@pytest.mark.parametrize(
    ("file", "source"), [("card.json", "packed"), ("train-0.tar", "webdataset"), ("train-0.PARQUET", "parquet")]
)
@pytest.mark.parametrize("place", ["", "train"])
def test_files_of_another_source_are_recognised(tmp_path: Path, place: str, file: str, source: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / file).touch()
    assert problem_of(tmp_path).problem.endswith(f"set data.source={source}")


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
    first, *others = error.problem.splitlines()
    assert first.endswith(". The first of 9 broken files; the others are")
    assert others[0].startswith(f"  {folder}/train/ant/1.jpg: is empty")
    assert error.problem.count("is empty") == 5
    assert str(error).count(error.path) == 1
    assert error.problem.endswith("and 4 more")

"""Samples in WebDataset's tar shards: which there are, where they are, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_files import jpeg, samples, write_tar

from resnet_dist.data.sources.by_name import check_root, index_of
from resnet_dist.data.sources.webdataset import list_tars
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: 5 + 4 samples in two shards; val: 3."""
    write_tar(tmp_path / "train-000000.tar", samples(range(5)))
    write_tar(tmp_path / "train-000001.tar", samples(range(5, 9)))
    write_tar(tmp_path / "val-000000.tar", samples(range(20, 23)))
    return tmp_path


def recipe(root: Path, **keys: str | int) -> DataRecipe:
    return DataRecipe(root=str(root), source="webdataset", **keys)  # type: ignore[arg-type]


def test_a_sample_is_one_range_of_its_shard(root: Path) -> None:
    train, val = (index_of(recipe(root), split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert list(train.paths) == [f"{number:04d}.jpg" for number in range(9)]
    assert train.labels.tolist() == [number % 3 for number in range(9)]
    assert train.classes == val.classes == ("0", "1", "2")
    assert (train.shards, train.shard_numbers.tolist()) == (
        ("train-000000.tar", "train-000001.tar"),
        [0] * 5 + [1] * 4,
    )
    assert train.heights.tolist() == [20 + number % 7 for number in range(9)]
    files = files_of(train)
    assert [files.read(row) for row in range(9)] == [jpeg(number) for number in range(9)]
    assert files.name(7) == f"{root}/train-000001.tar: 0007.jpg"
    assert train.notes == ()


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_long_names_and_names_that_are_not_ascii_are_read(form: int, tmp_path: Path) -> None:
    name = "/".join(["f" * 60] * (2 if form == tarfile.USTAR_FORMAT else 4)) + "/ä"
    members = [(f"{name}.jpg", jpeg(0)), (f"{name}.cls", b"0")]
    write_tar(tmp_path / "train-0.tar", members, format=form, encoding="utf-8")
    index = index_of(recipe(tmp_path), "train")
    assert list(index.paths) == [f"{name}.jpg"]
    assert files_of(index).read(0) == jpeg(0)


def test_keys_end_at_the_first_dot_and_extensions_are_of_any_case(tmp_path: Path) -> None:
    members = [
        ("./", b""),
        ("./a.b/x.JPEG", jpeg(1)),
        ("./a.b/x.cls", b" 1\n"),
        ("./a.b/x.seg.png", b"a mask, which is no image of the sample"),
        ("._x.jpg", b"of another system"),
    ]
    listing = list_tars(recipe(write_tar(tmp_path / "train-0.tar", members).parent), "train")
    assert (list(listing.paths), list(listing.labels)) == (["a.b/x.JPEG"], [1])


@pytest.mark.parametrize("key", [None, "class_id"])
def test_labels_are_in_json_too(key: str | None, tmp_path: Path) -> None:
    content = json.dumps({"label": 2, "class_id": 1, "caption": "x"}).encode()
    members = [("x.jpg", jpeg(1)), ("x.json", content), *([] if key is None else [("x.cls", b"0")])]
    listing = list_tars(recipe(write_tar(tmp_path / "train-0.tar", members).parent, label_key=key), "train")  # type: ignore[arg-type]
    assert list(listing.labels) == [2 if key is None else 1]


@pytest.mark.parametrize(
    "names",
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-0000.tar"),
        ("train/0000.tar", "val/0000.tar"),
        ("shards/training_0.TAR", "shards/valid_0.TAR"),
        ("train-0.tar", "test-0.tar"),
    ],
    ids=["validation", "folders", "valid", "test"],
)
def test_a_word_in_the_name_or_a_folder_says_the_split(names: tuple[str, str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write_tar(tmp_path / name, samples([number]))
    write_tar(tmp_path / "strained.tar", samples([7]))  # no word `train`
    for number, split in enumerate(("train", "val")):
        listing = list_tars(recipe(tmp_path), split)  # type: ignore[arg-type]
        assert list(listing.paths) == [f"{number:04d}.jpg"]
    left_out = f"{tmp_path}: left out *.tar whose names say neither train nor val: 1, for example strained.tar"
    assert left_out in list_tars(recipe(tmp_path), "train").notes


def test_test_is_not_val_where_there_is_a_val(root: Path) -> None:
    write_tar(root / "test-000000.tar", samples([99]))
    assert len(list_tars(recipe(root), "val").paths) == 3


def test_equal_names_in_two_shards_get_the_name_of_the_shard(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"train-{number}.tar", samples([0, 1]))
    listing = list_tars(recipe(tmp_path), "train")
    assert list(listing.paths) == ["train-0/0000.jpg", "train-0/0001.jpg", "train-1/0000.jpg", "train-1/0001.jpg"]


def test_a_listing_says_how_far_it_is(root: Path) -> None:
    told: list[str] = []
    list_tars(recipe(root), "train", told.append)
    assert told == ["1 of 2 shards", "2 of 2 shards"]


def test_missing_shards_are_refused_unless_the_number_of_images_is_stated(root: Path) -> None:
    for number in (4, 5):
        write_tar(root / f"train-{number:06d}.tar", samples([10 * number]))
    missing = "shards missing in a sequence of numbers: 2: train-2, train-3"
    for read in (lambda: list_tars(recipe(root), "train"), lambda: check_root(recipe(root))):
        with pytest.raises(DataError, match=rf": train: {missing}\. Copy them, .* or set data\.num_samples") as caught:
            read()
        assert caught.value.path == str(root)
    assert list_tars(recipe(root, num_samples=11), "train").notes == (f"{root}: {missing}",)


def test_missing_shards_of_val_are_refused(root: Path) -> None:
    write_tar(root / "val-000002.tar", samples([30]))
    with pytest.raises(DataError, match=r"val: shards missing .*: 1: val-1\. Copy them, or rename the others so that"):
        list_tars(recipe(root, num_samples=9), "val")


def test_numbers_of_which_most_are_missing_are_no_sequence(root: Path) -> None:
    write_tar(root / "train-20251126.tar", samples([40]))
    assert list_tars(recipe(root), "train").notes == ()


@pytest.mark.parametrize("kind", ["dangling", "fifo", "itself"])
def test_a_shard_that_is_no_file_is_refused(root: Path, kind: str) -> None:
    shard = root / "train-000002.tar"
    if kind == "fifo":
        os.mkfifo(shard)
    else:
        shard.symlink_to(shard if kind == "itself" else root / "nothing")
    with pytest.raises(DataError, match=r"/train-000002\.tar: is not a file, or a link that leads nowhere\. Copy the"):
        list_tars(recipe(root), "val")


def test_what_is_left_out_is_counted_once(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for number in range(2):
        (root / f"link-{number}").symlink_to(root / f"link-{number}")
    (root / ".hidden").mkdir()
    assert list_tars(recipe(root), "train").notes == (
        f"{root}: left out hidden files or folders: 1, for example .hidden",
        f"{root}: left out what is neither a file nor a folder: 3, for example link-0",
    )
    assert list_tars(recipe(root), "val").notes == ()


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_class_names_come_from_a_file_in_the_root(root: Path, name: str) -> None:
    (root / name).write_text("tench, Tinca tinca\ngoldfish\nwhite shark\n\n")
    assert index_of(recipe(root), "val").classes == ("tench, Tinca tinca", "goldfish", "white shark")


def test_classes_without_images_are_noted(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert list_tars(recipe(root), "train").notes == (f"{root}: train: 2 of 5 classes have no images: d, e",)


def test_a_label_without_a_name_is_refused_with_its_sample(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\n")
    expected = r"train-000000\.tar: 0002\.jpg: has the label 2; allowed are 0 to 1, as there are 2 class names"
    with pytest.raises(DataError, match=expected):
        list_tars(recipe(root), "train")


PAIR = [("x.jpg", jpeg(0)), ("x.cls", b"0")]
MALFORMED = {
    "no label": ([PAIR[0]], r"x\.jpg: is an image without a label; expected x\.cls"),
    "no image": ([*PAIR, ("y.cls", b"0")], r"y\.cls: is a label without an image"),
    "second image": ([*PAIR, ("x.png", jpeg(1))], r"x\.png: is a second image of the key x"),
    "second label": ([*PAIR, ("x.cls", b"1")], r"x\.cls: is a second label"),
    "words": ([PAIR[0], ("x.cls", b"tench")], r"x\.cls: is not a whole number: b'tench'"),
    "negative": ([PAIR[0], ("x.cls", b"-1")], r"x\.jpg: has the label -1; allowed are 0 to"),
    "no JSON": ([PAIR[0], ("x.json", b"{")], r"x\.json: is not JSON"),
    "no key": ([PAIR[0], ("x.json", b'{"a": 1, "b": 2}')], r"has no label; it has a, b\. Set data\.label_key"),
    "JSON word": ([PAIR[0], ("x.json", b'{"label": "a"}')], r"label is not a whole number: 'a'"),
    "nothing": ([("README", b"")], r"train-0\.tar: has no images; expected KEY\.jpg and KEY\.cls"),
    "tars": ([("n01440764.tar", b"")], r"holds 1 tar files and no images; .*launcher prepare imagenet"),
    "empty": ([], r"train-0\.tar: has no images"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_shards_are_refused_with_shard_and_member(name: str, tmp_path: Path) -> None:
    members, problem = MALFORMED[name]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=problem) as caught:
        list_tars(recipe(tmp_path), "train")
    assert caught.value.path.startswith(f"{tmp_path}/train-0.tar")


def test_a_compressed_shard_is_refused_with_what_to_do(root: Path) -> None:
    shard = root / "train-000000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(DataError, match=r"train-000000\.tar: is compressed with gzip: .* Unpack it to a plain \.tar"):
        list_tars(recipe(root), "train")


@pytest.mark.parametrize("rest", [0, 10, 512, 1000, 2048, 5000, -1024, -1])
def test_a_shard_that_is_cut_short_is_refused(rest: int, tmp_path: Path) -> None:
    """`rest`: how much is left of it, or if negative, how much is missing of what is not padding."""
    shard = write_tar(tmp_path / "train-0.tar", samples(range(5)))
    content = shard.read_bytes().rstrip(b"\0")
    whole = content + bytes(-len(content) % 512 + 1024)
    shard.write_bytes(whole)
    assert len(list_tars(recipe(tmp_path), "train").paths) == 5
    shard.write_bytes(whole[: rest if rest >= 0 else len(whole) - 1024 + rest])
    with pytest.raises(DataError, match=r"train-0\.tar: is (not a tar file, or is )?cut short"):
        list_tars(recipe(tmp_path), "train")


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    """tarfile takes it for the end."""
    shard = write_tar(tmp_path / "train-0.tar", samples(range(5)))
    content = bytearray(shard.read_bytes())
    content[content.index(b"0003.jpg")] = ord("x")
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"is cut short or damaged at byte \d"):
        list_tars(recipe(tmp_path), "train")


def test_a_root_without_shards_of_a_split_is_refused(root: Path) -> None:
    (root / "val-000000.tar").rename(root / "other.tar")
    expected = r"has no file \*\.tar of the split val; expected names such as .* found other\.tar, train-000000\.tar"
    with pytest.raises(DataError, match=expected):
        list_tars(recipe(root), "val")


def test_random_damage_is_found_or_harmless(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-0.tar", samples(range(3)), format=tarfile.PAX_FORMAT)
    content, random = shard.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        for place in random.integers(0, len(content) - 10_240, 3):
            changed[place] = random.integers(256)
        shard.write_bytes(changed)
        try:
            listing = list_tars(recipe(tmp_path), "train")
        except DataError:
            continue
        assert len(listing.paths) == len(listing.labels) == 3


def test_folders_of_the_file_system_are_no_obstacle(root: Path) -> None:
    for name in ("lost+found", ".snapshots"):
        write_tar(root / name / "train-9.tar", samples([99]))
    assert len(list_tars(recipe(root), "train").paths) == 9

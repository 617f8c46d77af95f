"""Rows of Hugging Face's parquet shards: which there are, how they are read, and what is refused."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_files import jpeg, write_parquet

from resnet_dist.data.index.table import Index
from resnet_dist.data.sources import parquet
from resnet_dist.data.sources.by_name import identity, index_of
from resnet_dist.data.sources.parquet import ParquetFiles, list_rows, row_group_warnings
from resnet_dist.data.storage.files import files_of
from resnet_dist.data.storage.local import LocalStorage
from resnet_dist.errors import DataError, MissingPackage
from resnet_dist.recipe.schema import DataRecipe

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: 5 + 4 rows in groups of 2; val: 3."""
    for name, numbers in (
        ("train-00000-of-00002", range(5)),
        ("train-00001-of-00002", range(5, 9)),
        ("validation-00000-of-00001", range(20, 23)),
    ):
        images, labels = [jpeg(number) for number in numbers], [number % 3 for number in numbers]
        write_parquet(tmp_path / "data" / f"{name}.parquet", images, labels, names=NAMES)
    return tmp_path


def recipe(root: Path, **keys: str | int) -> DataRecipe:
    return DataRecipe(root=str(root), source="parquet", **keys)  # type: ignore[arg-type]


def test_a_sample_is_a_row(root: Path) -> None:
    train, val = (index_of(recipe(root), split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert train.classes == val.classes == NAMES
    assert train.labels.tolist() == [number % 3 for number in range(9)]
    assert train.offsets.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert train.heights.tolist() == [20 + number % 7 for number in range(9)]
    assert train.num_bytes.tolist() == [len(jpeg(number)) for number in range(9)]
    files = files_of(train)
    assert [files.read(row) for row in range(9)] == [jpeg(number) for number in range(9)]
    assert len(val) == 3
    assert train.paths[6] == "data/train-00001-of-00002/000001"
    assert files.name(6) == f"{root}/data/train-00001-of-00002.parquet: data/train-00001-of-00002/000001"


def test_samples_have_the_paths_of_the_images_if_all_have_different_ones(tmp_path: Path) -> None:
    shard = tmp_path / "train-0.parquet"
    for paths, expected in (
        (["n1_a.JPEG", "n1_b.JPEG"], ["n1_a.JPEG", "n1_b.JPEG"]),
        (["a.JPEG", "a.JPEG"], ["train-0/000000", "train-0/000001"]),
        (["a.JPEG", None], ["train-0/000000", "train-0/000001"]),
    ):
        write_parquet(shard, [jpeg(0), jpeg(1)], [0, 1], paths=paths)
        assert list(list_rows(recipe(tmp_path), "train").paths) == expected


def test_other_columns_are_named_by_keys(tmp_path: Path) -> None:
    """CIFAR-100's are img, fine_label and coarse_label."""
    write_parquet(
        tmp_path / "train-0.parquet",
        [jpeg(0), jpeg(1)],
        [0, 4],
        keys=("img", "fine_label"),
        other={"coarse_label": [1, 0]},
    )
    index = index_of(recipe(tmp_path, image_key="img", label_key="coarse_label"), "train")
    assert index.labels.tolist() == [1, 0]
    assert files_of(index).read(1) == jpeg(1)
    keys = [{"label_key": key} for key in ("fine_label", "coarse_label")]
    assert len({identity(recipe(tmp_path, image_key="img", **key)) for key in keys}) == 2


def test_a_column_of_bytes_without_a_struct_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [None], [0], other={"plain": [jpeg(3)]})
    assert files_of(index_of(recipe(tmp_path, image_key="plain"), "train")).read(0) == jpeg(3)


def test_a_saved_index_reads_the_same_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [jpeg(0)], [0], keys=("img", "label"))
    index_of(recipe(tmp_path, image_key="img"), "train").save(tmp_path / "index")
    assert files_of(Index.load(tmp_path / "index")).read(0) == jpeg(0)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_shard_of_a_total_is_refused(root: Path, number: int) -> None:
    (root / f"data/train-0000{number}-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=f"train: shards missing in a sequence of numbers: 1: data/train-{number}[.] "):
        list_rows(recipe(root), "train")
    assert len(list_rows(recipe(root, num_samples=4), "train").notes) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"keys": ("img", "label")}, r"has no column image; its columns are img, label\. Set data\.image_key"),
        ({"keys": ("image", "class")}, r"has no column label; its columns are image, class\. Set data\.label_key"),
        ({"labels": [0, None]}, r"row 1: has no label in the column label"),
        ({"labels": [0, 3], "names": NAMES}, r"row 1: has the label 3; allowed are 0 to 2, as there are 3 class names"),
        ({"labels": [-1, -1]}, r"row 0: has the label -1"),
        ({"images": [], "labels": []}, r"has no rows in the files \*\.parquet of the split train"),
    ],
    ids=["image", "label", "null", "outside", "negative", "empty"],
)
def test_malformed_shards_are_refused(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    given = {"images": [jpeg(0), jpeg(1)], "labels": [0, 1]} | changes
    write_parquet(tmp_path / "train-0.parquet", **given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=problem):
        list_rows(recipe(tmp_path), "train")


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("image_key", "column text has the type string; expected the bytes"),
        ("label_key", "type string; expected whole"),
    ],
)
def test_columns_of_other_types_are_refused(key: str, problem: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [jpeg(0)], [0], other={"text": ["a"]})
    with pytest.raises(DataError, match=problem):
        list_rows(recipe(tmp_path, **{key: "text"}), "train")


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"not parquet, but long enough to be", None], ids=["0", "4", "text", "cut"]
)
def test_a_file_that_is_not_parquet_or_cut_short_is_refused(content: bytes | None, root: Path) -> None:
    shard = root / "data/train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: cannot be read as parquet") as caught:
        list_rows(recipe(root), "train")
    assert "copy the file again" in caught.value.problem


def test_a_row_without_image_is_a_broken_image_of_the_index(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [jpeg(0), None], [0, 1])
    with pytest.raises(DataError, match=r"train-0/000001.*: has no bytes in the column image"):
        index_of(recipe(tmp_path), "train")


def test_a_shard_that_has_changed_is_noticed(root: Path) -> None:
    train = index_of(recipe(root), "train")
    shard = root / "data/train-00000-of-00002.parquet"
    write_parquet(shard, [jpeg(50 + number) for number in range(5)], [0] * 5)
    with pytest.raises(DataError, match="has changed since it was indexed"):
        files_of(train).read(3)
    write_parquet(shard, [jpeg(0)], [0])
    with pytest.raises(DataError, match="the file has 1 rows: it has changed"):
        files_of(train).read(3)


class Counted(LocalStorage):
    """Counts how often a file is opened."""

    opened = 0

    def open(self, path: str):  # type: ignore[no-untyped-def]
        self.opened += 1
        return super().open(path)


def test_a_row_group_is_read_once_while_it_fits_into_memory(root: Path) -> None:
    train, storage = index_of(recipe(root), "train"), Counted(str(root))
    files = ParquetFiles(train, storage)
    results: list[bytes] = []

    def read_all() -> None:
        results.extend(files.read(row) for row in np.random.default_rng(0).permutation(9).tolist())

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([jpeg(number) for number in range(9)] * 4)
    assert storage.opened == 2 + 5  # footers, and groups of 2, 2, 1 and 2, 2 rows


def test_the_groups_used_longest_ago_are_forgotten(root: Path) -> None:
    train, storage = index_of(recipe(root), "train"), Counted(str(root))
    files = ParquetFiles(train, storage, cache_bytes=1)  # none fits: the last one stays
    for row in (0, 1, 0, 2, 3, 0):
        files.read(row)
    assert storage.opened == 1 + 3


def test_a_warning_names_packing_if_row_groups_are_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, shards = index_of(recipe(root), "train"), DataRecipe(order="shards", shuffle_window=4)
    assert not [*row_group_warnings(DataRecipe(), train), *row_group_warnings(shards, train)]
    monkeypatch.setattr(parquet, "CACHE_BYTES", int(train.num_bytes.sum()) * 3 // 4)
    (warning,) = row_group_warnings(DataRecipe(), train)
    assert "data.order: uniform" in warning
    assert "launcher prepare pack" in warning
    assert not list(row_group_warnings(shards, train))  # a window of 4 of 9 images fits
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1000)
    (warning,) = row_group_warnings(shards, train)
    assert "data.shuffle_window: 4" in warning


def test_without_pyarrow_the_error_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    with pytest.raises(MissingPackage, match=r"pip install 'resnet-launcher\[parquet\]'"):
        list_rows(recipe(root), "train")

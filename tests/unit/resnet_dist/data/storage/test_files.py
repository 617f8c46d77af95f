"""The bytes of images: from files of their own, from ranges of shards, and changed since they were indexed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data import Index
from resnet_dist.data.headers.image import tail_of
from resnet_dist.data.storage.files import StoredFiles, files_of
from resnet_dist.data.storage.local import LocalStorage, storage_of
from resnet_dist.errors import DataError


@pytest.fixture
def in_shards(train_index: Index, image_folder: Path, tmp_path: Path) -> Index:
    """The training images of `image_folder` in two shards, with bytes between them."""
    contents = [(image_folder / path).read_bytes() for path in train_index.paths]
    numbers = np.arange(len(train_index), dtype=np.int32) % np.int32(2)
    offsets = np.zeros(len(train_index), np.int64)
    shards = {"a": b"", "b": b""}
    for sample, content in enumerate(contents):
        name = "ab"[numbers[sample]]
        shards[name] += b"header of a sample"
        offsets[sample] = len(shards[name])
        shards[name] += content
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    return dataclasses.replace(
        train_index, root=str(tmp_path), shards=("a", "b"), shard_numbers=numbers, offsets=offsets
    )


def test_an_image_has_the_same_bytes_in_a_file_and_in_a_shard(train_index: Index, in_shards: Index) -> None:
    loose, packed = files_of(train_index), files_of(in_shards)
    for sample in range(len(train_index)):
        assert packed.read(sample) == loose.read(sample) == Path(train_index.path(sample)).read_bytes()
    assert packed.name(3) == f"{in_shards.root}/b: {train_index.paths[3]}"


def test_a_file_removed_in_mid_run_is_named_with_its_sample(train_index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory") as caught:
        StoredFiles(train_index, storage_of(str(tmp_path))).read(2)
    assert (caught.value.path, caught.value.sample_id) == (train_index.path(2), 2)


def test_a_shard_removed_in_mid_run_is_named_with_the_image(in_shards: Index) -> None:
    files = files_of(in_shards)
    files.read(0)
    (Path(in_shards.root) / "b").unlink()
    with pytest.raises(DataError, match=r"/b: .*: cannot be read: No such file") as caught:
        files.read(3)
    assert caught.value.sample_id == 3


def changed(content: bytes, how: str) -> bytes:
    return {
        "shorter": content[:-1],
        "longer": content + b"\0",
        "other end": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    }[how]


@pytest.mark.parametrize("how", ["shorter", "longer", "other end"])
def test_a_file_that_changed_since_it_was_indexed_is_refused(train_index: Index, tmp_path: Path, how: str) -> None:
    content = changed(Path(train_index.path(0)).read_bytes(), how)
    (tmp_path / "x.jpg").write_bytes(content)
    index = dataclasses.replace(train_index.take(np.array([0])), root=str(tmp_path), paths=("x.jpg",))
    with pytest.raises(DataError, match=r"x.jpg \(sample 0\): has changed since it was indexed"):
        files_of(index).read(0)


def test_a_shard_cut_short_is_refused(in_shards: Index) -> None:
    shard = Path(in_shards.root) / "b"
    shard.write_bytes(shard.read_bytes()[:-10])
    files, last = files_of(in_shards), len(in_shards) - 1
    assert tail_of(files.read(last - 2)) == in_shards.tails[last - 2]
    with pytest.raises(DataError, match="has changed since it was indexed"):
        files.read(last)


class NotedVersions(LocalStorage):
    """Notes what the cache of an address would tell contents apart by."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.versions: list[tuple[str, str]] = []

    def read(self, path: str, offset: int = 0, num_bytes: int | None = None, *, version: str = "") -> bytes:
        self.versions.append((path, version))
        return super().read(path, offset, num_bytes)


def test_the_version_is_that_of_the_shard_or_else_of_the_file(train_index: Index, in_shards: Index) -> None:
    noted = NotedVersions(in_shards.root)
    StoredFiles(dataclasses.replace(in_shards, folder_times_ns={"a": 17, "b": 18}), noted).read(1)
    StoredFiles(dataclasses.replace(in_shards, folder_times_ns={}), noted).read(0)
    assert noted.versions == [("b", "18"), ("a", "")]
    noted = NotedVersions(train_index.root)
    StoredFiles(dataclasses.replace(train_index, times_ns=np.arange(len(train_index)) + 5), noted).read(2)
    StoredFiles(dataclasses.replace(train_index, times_ns=np.zeros(0, np.int64)), noted).read(2)
    assert noted.versions == [(train_index.paths[2], "7"), (train_index.paths[2], "")]

"""Files below a folder: what is listed, what is read, and the errors of disks."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_dist.data.order import Stream
from resnet_dist.data.storage import local as storage
from resnet_dist.data.storage.local import LocalStorage, storage_of
from resnet_dist.errors import DataError, StoreUnavailable

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(CONTENT)
    (tmp_path / "a" / "two").write_bytes(b"2")
    (tmp_path / "a" / "b" / "three").write_bytes(b"333")
    return tmp_path


def test_a_folder_is_listed_with_sizes_and_times(root: Path) -> None:
    times_ns = {path: (root / path).stat().st_mtime_ns for path in ("one", "a/two", "a/b/three")}
    found = storage_of(str(root))
    assert found.entries() == [("one", len(CONTENT), times_ns["one"])]
    assert found.entries("a") == [("a/two", 1, times_ns["a/two"])]
    assert [entry.path for entry in found.entries("a", deep=True)] == ["a/b/three", "a/two"]
    assert [entry.path for entry in found.entries(deep=True)] == ["a/b/three", "a/two", "one"]


def test_a_listing_has_only_files_and_links_to_files(root: Path) -> None:
    (root / ".hidden").write_bytes(b"")
    (root / ".folder").mkdir()
    (root / ".folder" / "inside").write_bytes(b"")
    os.mkfifo(root / "fifo")
    (root / "dangling").symlink_to(root / "nothing")
    (root / "link").symlink_to(root / "one")
    (root / "a" / "loop").symlink_to(root)
    assert [entry.path for entry in storage_of(str(root)).entries(deep=True)] == [
        "a/b/three", "a/two", "link", "one",
    ]  # fmt: skip


def test_what_a_listing_leaves_out_is_told(root: Path) -> None:
    (root / ".hidden").write_bytes(b"")
    (root / "a" / "lost+found").mkdir()
    os.mkfifo(root / "a" / "fifo")
    (root / "dangling").symlink_to(root / "nothing")
    (root / "itself").symlink_to(root / "itself")
    told: list[tuple[str, str]] = []
    found = storage_of(str(root)).entries(deep=True, left_out=lambda reason, path: told.append((reason, path)))
    assert [entry.path for entry in found] == ["a/b/three", "a/two", "one"]
    assert sorted(told, key=lambda one: one[1]) == [
        (storage.HIDDEN, ".hidden"),
        (storage.NO_FILE, "a/fifo"),
        (storage.RECOVERED, "a/lost+found"),
        (storage.NO_FILE, "dangling"),
        (storage.NO_FILE, "itself"),
    ]


def test_a_folder_that_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"/nothing: cannot be read: No such file") as caught:
        storage_of(str(root)).entries("nothing")
    assert caught.value.path == str(root / "nothing")


def test_any_range_is_read(root: Path) -> None:
    files = storage_of(str(root))
    assert files.read("one") == CONTENT
    assert files.read("one", 300) == CONTENT[300:]
    assert files.read("one", 300, 5) == CONTENT[300:305]
    assert files.read("one", len(CONTENT) - 2, 100) == CONTENT[-2:]
    assert files.read("one", len(CONTENT) + 5, 100) == files.read("one", len(CONTENT) + 5) == b""
    with files.open("one") as file:
        file.seek(1000)
        assert file.read(10) == CONTENT[1000:1010]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "unreadable"])
def test_what_cannot_be_read_is_named_without_waiting(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "fifo")
    (root / "unreadable").write_bytes(b"1")
    real = os.open

    def refused(path: str, flags: int) -> int:  # permissions do not stop root
        if path.endswith("unreadable"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", refused)
    files = storage_of(str(root))
    for read in (lambda: files.read(kind), lambda: files.read(kind, 0, 1), lambda: files.open(kind)):
        with pytest.raises(DataError, match=f"/{kind}: cannot be read: ") as caught:
            read()
        assert caught.value.path == str(root / kind)


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_few_files_stay_open_and_none_is_closed_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_OPEN_FILES", 2)
    monkeypatch.setattr(storage, "_FEW_FILES", 2)
    names = [f"file-{number}" for number in range(8)]
    for name in names:
        (root / name).write_bytes(name.encode())
    files = LocalStorage(str(root))
    before = num_descriptors()
    wrong: list[bytes] = []

    def read_all() -> None:
        for name in names * 30:
            content = files.read(name, 0, 100)
            wrong.extend([content] if content != name.encode() else [])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert num_descriptors() == before + 2


class FailingReads:
    """Stands in for os.pread: fails with `code` a number of times."""

    def __init__(self, code: int, times: int) -> None:
        self.code, self.times, self.descriptors = code, times, list[int]()
        self._real = os.pread

    def __call__(self, descriptor: int, num_bytes: int, offset: int) -> bytes:
        self.descriptors.append(os.fstat(descriptor).st_ino)
        if len(self.descriptors) <= self.times:
            raise OSError(self.code, os.strerror(self.code))
        return self._real(descriptor, num_bytes, offset)


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before reading again; they take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_a_stale_file_is_opened_again(
    root: Path, pauses_s: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = LocalStorage(str(root))
    assert files.read("one", 0, 2) == CONTENT[:2]
    (root / "new").write_bytes(b"new content")
    (root / "new").replace(root / "one")  # the open descriptor is of the old file
    monkeypatch.setattr(os, "pread", FailingReads(errno.ESTALE, 1))
    with caplog.at_level(logging.WARNING):
        assert files.read("one", 0, 3) == b"new"
    assert pauses_s == [0.1]
    assert "one: Stale file handle; it is read again in 0.1 s" in caplog.text


@pytest.mark.parametrize("ranged", [True, False])
def test_bytes_that_a_disk_does_not_return_are_a_data_error(
    root: Path, pauses_s: list[float], ranged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", FailingReads(errno.EIO, 9))
    with pytest.raises(DataError, match=r"/one: cannot be read \(4 times in 6 s\): Input/output error"):
        storage_of(str(root)).read("one", 0, 3 if ranged else None)
    assert pauses_s == [0.1, 1.0, 5.0]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_stays_away_is_no_error_of_the_data(
    root: Path, pauses_s: list[float], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", FailingReads(code, 9))
    with pytest.raises(StoreUnavailable, match=r"/one: cannot be read \(4 times in 6 s\): .* Check the disk, or the s"):
        storage_of(str(root)).read("one", 0, 3)
    assert pauses_s == [0.1, 1.0, 5.0]


@pytest.mark.usefixtures("pauses_s")
def test_a_file_system_on_which_no_file_opens_is_away(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str, flags: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(os, "open", fails)
    files = storage_of(str(root))
    for read in (lambda: files.read("one"), lambda: files.read("one", 0, 1), lambda: files.open("one")):
        with pytest.raises(StoreUnavailable, match=r"/one: cannot be read \(4 times in 6 s\): Input/output error"):
            read()


def test_reads_of_an_open_file_are_tried_again(
    root: Path, pauses_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.FileIO):
        left = 2

        def readinto(self, buffer: Any) -> int | None:
            if Failing.left:
                Failing.left -= 1
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            return super().readinto(buffer)

    class Both(storage._RetriedFile, Failing):
        """`_RetriedFile` above a file that fails."""

    monkeypatch.setattr(storage, "_RetriedFile", Both)
    with storage_of(str(root)).open("one") as file:
        assert file.read(10) == CONTENT[:10]
        assert file.read() == CONTENT[10:]
    assert pauses_s == [0.1, 1.0]


def test_a_file_that_is_gone_is_not_tried_again(root: Path, pauses_s: list[float]) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        storage_of(str(root)).read("gone")
    assert not pauses_s


def test_nothing_is_written_into_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only root is as good: every file is opened for reading only, and nothing is created."""
    flags: list[int] = []
    real: Any = os.open

    def noted(path: str, mode: int) -> int:
        flags.append(mode)
        return int(real(path, mode))

    monkeypatch.setattr(os, "open", noted)
    files = storage_of(str(root))
    files.entries(deep=True)
    files.read("one")
    files.read("one", 1, 1)
    files.open("one").close()
    assert len(flags) == 3
    assert not any(mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for mode in flags)


def test_the_shards_of_imagenet_stay_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 shards in uniform order: each is opened once, so 1.28 million images cost 0.5 opens per 1,000 of them."""
    num_shards, per_shard = 600, 2
    for number in range(num_shards):
        (root / str(number)).write_bytes(bytes([number % 251, 0]))
    files, opened = LocalStorage(str(root)), list[str]()
    real: Any = os.open

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return int(real(path, flags))

    monkeypatch.setattr(os, "open", noted)
    num = num_shards * per_shard
    for sample_id in Stream(num, seed=0).sample_ids(np.arange(2 * num)).tolist():
        shard, offset = divmod(sample_id, per_shard)
        assert files.read(str(shard), offset, 1)[0] == (shard % 251 if offset == 0 else offset - 1)
    assert len(opened) == len(set(opened)) == num_shards
    assert 1000 * len(opened) / 1_281_167 < 1


@pytest.mark.parametrize(
    ("limits", "set_to", "most"),
    [
        ((1024, 1_048_576), 8192, 2048),
        ((1024, 4096), 4096, 1024),
        ((1024, 1024), None, 256),
        ((100_000, 1_048_576), None, 2048),
    ],
)
def test_open_files_are_a_quarter_of_what_the_system_allows(
    limits: tuple[int, int], set_to: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: changed.append(new))
    assert storage._most_files() == most
    assert changed == ([] if set_to is None else [(set_to, limits[1])])

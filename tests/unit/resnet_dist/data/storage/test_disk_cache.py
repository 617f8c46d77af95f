"""The cache on a node's disk: bounded, shared, and never wrong."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.data.storage.disk_cache import DiskCache

CONTENT = bytes(range(256)) * 1000  # four parts of 64 KiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    """The entries, those used longest ago first."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "size"]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def size_of_all(folder: Path) -> int:
    """Bytes of all entries, while others delete some."""
    total = 0
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def age(cache: DiskCache, folder: Path, keys: list[str]) -> None:
    """Put small entries that were used an hour ago, the first longest ago."""
    for key in keys:
        before = set(files(folder))
        cache.put(key, key.encode() * 1000)
        (new,) = set(files(folder)) - before
        os.utime(new, (1e9 + len(before), 1e9 + len(before)))


def test_what_was_put_is_found_in_any_range(folder: Path) -> None:
    cache = DiskCache(folder, 2**30)
    assert cache.get("a") is None
    cache.put("a", CONTENT)
    cache.put("b", b"")
    other = DiskCache(folder, 2**30)  # of another process
    assert other.get("a") == CONTENT
    assert other.get("b") == b""
    for offset, num_bytes in ((0, 1), (65_535, 2), (65_536, 65_536), (200_000, 10**6), (len(CONTENT) + 1, 5)):
        assert other.get("a", offset, num_bytes) == CONTENT[offset : offset + num_bytes]
    assert other.get("c") is None


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "other header", "empty"])
def test_a_damaged_entry_is_never_returned(folder: Path, damage: str) -> None:
    cache = DiskCache(folder, 2**30)
    cache.put("a", CONTENT)
    (file,) = files(folder)
    raw = bytearray(file.read_bytes())
    raw[-70_000] ^= damage == "flipped"
    raw[8] ^= damage == "other header"
    damaged = {"cut": bytes(raw[:-1]), "longer": bytes(raw) + b"x", "empty": b""}
    file.write_bytes(damaged.get(damage, bytes(raw)))
    assert cache.get("a") is None
    if damage == "flipped":
        assert cache.get("a", 0, 65_536) == CONTENT[:65_536]  # another part
    cache.put("a", CONTENT)
    assert cache.get("a") == CONTENT


def test_every_flipped_bit_is_found(folder: Path) -> None:
    cache = DiskCache(folder, 2**20)
    cache.put("a", b"12 bytes....")
    (file,) = files(folder)
    raw = file.read_bytes()
    for position in range(len(raw)):
        file.write_bytes(raw[:position] + bytes([raw[position] ^ 16]) + raw[position + 1 :])
        assert cache.get("a") is None


def test_the_oldest_are_deleted_whoever_wrote_them(folder: Path) -> None:
    caches = [DiskCache(folder, 10_000) for _ in range(2)]
    age(caches[0], folder, list("abc"))
    age(caches[1], folder, list("defgh"))
    assert caches[0].get("a") is not None  # used now
    caches[0].put("i", b"i" * 1000)
    caches[1].put("j", b"j" * 1000)
    kept = [key for key in "abcdefghij" if caches[0].get(key) is not None]
    assert kept == list("adefghij")


def test_the_limit_holds_when_many_write(folder: Path) -> None:
    limit = 300_000
    caches = [DiskCache(folder, limit) for _ in range(4)]

    def write(number: int) -> int:
        caches[number % 4].put(f"key {number}", bytes(5000))
        return size_of_all(folder)

    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(write, range(200)))
    assert max(sizes) <= limit
    assert int((folder / "size").read_text()) == size_of_all(folder)
    assert sizes[-1] > limit // 2


@pytest.mark.parametrize("text", ["", "not a number", None])
def test_a_lost_total_is_counted_again(folder: Path, text: str | None) -> None:
    cache = DiskCache(folder, 10_000)
    age(cache, folder, list("abcd"))
    if text is None:
        (folder / "size").unlink()
    else:
        (folder / "size").write_text(text)
    cache.put("e", b"e" * 1000)
    assert int((folder / "size").read_text()) == size_of_all(folder)


def test_what_a_killed_process_left_is_deleted_in_its_turn(folder: Path) -> None:
    cache = DiskCache(folder, 10_000)
    age(cache, folder, ["a"])
    left = files(folder)[0].with_name(".unfinished")
    left.write_bytes(bytes(5000))
    os.utime(left, (1, 1))
    (folder / "size").unlink()
    for key in "bcdefghi":
        cache.put(key, key.encode() * 1000)
    assert not left.exists()


def test_an_entry_that_fills_the_cache_is_not_kept(folder: Path) -> None:
    cache = DiskCache(folder, 10_000)
    age(cache, folder, ["a"])
    cache.put("large", bytes(6000))
    assert cache.get("large") is None
    assert cache.get("a") is not None


def test_a_disk_that_others_fill_gets_entries_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(folder, 2**30)
    age(cache, folder, list("abcdefgh"))
    disk = types.SimpleNamespace(f_blocks=10_000, f_bavail=1400, f_frsize=1)  # 900 bytes, and 5 % for others
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    cache.put("i", b"i" * 1000)
    kept = [key for key in "abcdefghi" if cache.get(key) is not None]
    assert kept == list("cdefghi")
    assert cache.is_writable
    disk.f_bavail = 0
    for path in files(folder):
        path.unlink()
    (folder / "size").unlink()
    with caplog.at_level(logging.WARNING):
        cache.put("j", b"j" * 1000)
    assert "the disk is full; data is read without a cache now" in caplog.text
    assert cache.get("j") is None


def test_a_full_disk_is_told_once_and_what_is_there_is_still_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(folder, 2**30)
    cache.put("a", CONTENT)
    real: Any = io.open

    def full(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(io, "open", full)  # pathlib's
    with caplog.at_level(logging.WARNING):
        cache.put("b", CONTENT)
        cache.put("c", CONTENT)
    assert [record.message for record in caplog.records] == [
        f"data.cache.folder: {folder}: No space left on device; data is read without a cache now"
    ]
    assert not cache.is_writable
    assert cache.get("a") == CONTENT
    assert cache.get("b") is None


def test_a_folder_that_cannot_be_made_is_told_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        cache = DiskCache(tmp_path / "file" / "cache", 2**30)
        cache.put("a", b"a")
        with cache.adding("a"):
            pass
    assert cache.get("a") is None
    assert len(caplog.records) == 1


def test_a_folder_of_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with caplog.at_level(logging.WARNING):
        cache = DiskCache(folder, 2**30)
    assert "the folder belongs to another user" in caplog.text
    assert not cache.is_writable


def test_others_wait_while_an_entry_is_added(folder: Path) -> None:
    caches = [DiskCache(folder, 2**30) for _ in range(4)]
    fetched: list[int] = []
    barrier = threading.Barrier(4)

    def use(number: int) -> None:
        barrier.wait()
        with caches[number].adding("a"):
            if caches[number].get("a") is None:
                fetched.append(number)
                caches[number].put("a", CONTENT)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1

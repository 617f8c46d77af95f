"""Reading all headers: in threads, in parts, from files and from shards."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_dist.data import Index
from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index
from resnet_dist.data.index import parts as index_parts
from resnet_dist.data.index.build import check_whole, refreshed
from resnet_dist.data.index.table import Kind
from resnet_dist.data.sources.image_folder import list_images
from resnet_dist.data.sources.listing import Listing
from resnet_dist.data.storage import local, parallel
from resnet_dist.data.storage.parallel import in_chunks
from resnet_dist.errors import DataError, StoreUnavailable


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def built(folder: Path, **options: object) -> Index:
    return build_index.build_index(list_images(str(folder), "train"), str(folder), "imagefolder", **options)  # type: ignore[arg-type]


def test_ranges_come_in_order_whatever_the_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 3)

    def work(first: int, end: int) -> list[int]:
        time.sleep(0.002 * (first % 2))
        return list(range(first, end))

    found = list(in_chunks(20, work))
    assert [number for _, _, numbers in found for number in numbers] == list(range(20))
    assert found[-1][:2] == (18, 20)
    assert list(in_chunks(0, work)) == []


def test_more_threads_start_where_they_wait_and_end_with_their_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 1)
    seen: set[int] = set()

    def waits(first: int, end: int) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.02)

    chunks = in_chunks(10_000, waits)
    for _, end, _ in chunks:
        if end == 60:
            break
    chunks.close()  # type: ignore[attr-defined]
    assert len(seen) > 2
    deadline = time.monotonic() + 5
    while any(thread.name == "index" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "index" for thread in threading.enumerate())


def test_an_error_of_a_thread_is_raised() -> None:
    def fails(first: int, end: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_chunks(5, fails))


def test_broken_images_are_rows_with_their_problems(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "ant" / "1.jpg").write_bytes(b"text")
    (folder / "train" / "cat" / "0.jpg").unlink()
    (folder / "train" / "cat" / "0.jpg").symlink_to(tmp_path / "nowhere")
    listing = list_images(str(folder), "train")
    paths = [*listing.paths, "train/cat/gone.jpg"]
    labels = [*np.asarray(listing.labels).tolist(), 2]
    index = build_index.build_index(Listing(listing.classes, paths, labels), str(folder), "imagefolder")
    broken = [index.paths[row] for row in index.problems]
    assert broken == [index.paths[row] for row in np.flatnonzero(index.kinds == Kind.BROKEN)]
    assert broken[0] == "train/ant/1.jpg"
    assert broken[-1] == "train/cat/gone.jpg"
    assert index.problems[len(index) - 1] == "cannot be read: No such file or directory"
    assert (index.heights[1], index.widths[1], index.tails[1], index.num_bytes[1]) == (1, 1, 0, 4)
    part = index.take(np.array([len(index) - 1, 0, 1]))
    assert part.problems == {0: index.problems[len(index) - 1], 2: index.problems[1]}
    index.save(tmp_path / "index")
    assert Index.load(tmp_path / "index").problems == index.problems
    with pytest.raises(DataError, match=rf"ant/1\.jpg: .* The first of {len(broken)} broken files"):
        check_whole(index)
    check_whole(index, known_bad=frozenset(broken))


def test_an_interrupted_start_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_parts, "_EVERY_S", 0.0)
    monkeypatch.setattr(parallel, "CHUNK", 2)
    (folder / "train" / "ant" / "0.jpg").write_bytes(b"")
    whole, read, limit = built(folder), list[str](), 7

    def interrupted(name: str, num_bytes: int, read_bytes: Callable[[int, int], bytes]) -> Header:
        if len(read) == limit:
            raise KeyboardInterrupt
        read.append(name)
        return header_of(name, num_bytes, read_bytes)

    monkeypatch.setattr(build_index, "header_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(folder, parts=tmp_path / "parts")
    num_saved = len(list((tmp_path / "parts").iterdir())) * 2
    assert num_saved >= 2
    (folder / "train" / "ant" / "1.jpg").write_bytes((folder / "train" / "bee" / "0.jpg").read_bytes())
    read.clear()
    limit = 100
    reports: list[tuple[int, int]] = []
    rest = built(folder, parts=tmp_path / "parts", report=lambda done, total: reports.append((done, total)))
    assert len(read) == 12 - num_saved + 2  # one is broken, and one has changed meanwhile
    assert reports[-1] == (12, 12)
    assert not (tmp_path / "parts").exists()
    assert rest.fingerprint() == built(folder).fingerprint() != whole.fingerprint()
    assert list(rest.problems) == [0]


def test_parts_of_another_list_and_damaged_parts_are_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_parts, "_EVERY_S", 0.0)
    unread = built(folder)
    table = index_parts.new_table(12)
    index_parts.Parts(tmp_path, unread).save(table, {}, 8)
    assert index_parts.Parts(tmp_path, unread).load(table, {}) == 8
    assert index_parts.Parts(tmp_path, unread.take(np.arange(11))).load(table, {}) == 0
    (part,) = tmp_path.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-10])
    assert index_parts.Parts(tmp_path, unread).load(table, {}) == 0


def test_an_index_is_refreshed_where_files_have_changed(folder: Path) -> None:
    index = built(folder)
    assert refreshed(index) is index
    (folder / "train" / "ant" / "1.jpg").write_bytes(b"text")
    fresh = refreshed(index)
    assert list(fresh.problems) == [1]
    assert refreshed(fresh) is fresh
    (folder / "train" / "ant" / "1.jpg").write_bytes((folder / "train" / "bee" / "1.jpg").read_bytes())
    repaired = refreshed(fresh)
    assert (repaired.problems, repaired.heights[1]) == ({}, index.heights[5])
    (folder / "train" / "ant" / "1.jpg").chmod(0o600)  # changes its inode, and not the image
    assert refreshed(repaired).fingerprint() == repaired.fingerprint()


def test_headers_in_shards_are_read_where_the_samples_are(folder: Path, tmp_path: Path) -> None:
    whole = built(folder)
    contents = [(folder / path).read_bytes() for path in whole.paths]
    shard = b"head" + b"".join(contents[:6])
    end = 4 + sum(map(len, contents[:4]))
    (tmp_path / "a.tar").write_bytes(shard[: end - 70] + bytes(70) + shard[end:])
    (tmp_path / "b.tar").write_bytes(b"".join(contents[6:]))
    sizes = np.array([len(content) for content in contents])
    starts = np.concatenate([4 + np.cumsum([0, *sizes[:5]]), np.cumsum([0, *sizes[6:-1]])])
    listing = Listing(
        whole.classes, whole.paths, whole.labels, shards=("a.tar", "b.tar"),
        shard_numbers=np.repeat(np.array([0, 1], np.int32), 6), offsets=starts, num_bytes=sizes,
    )  # fmt: skip
    index = build_index.build_index(listing, str(tmp_path), "webdataset")
    assert list(index.problems) == [3]
    same = np.delete(np.arange(12), 3)
    assert index.heights[same].tolist() == whole.heights[same].tolist()
    assert index.tails[same].tolist() == whole.tails[same].tolist()
    assert len(index.times_ns) == 0
    assert refreshed(index).problems == index.problems
    (tmp_path / "a.tar").write_bytes(shard)  # a disk or network that has recovered
    assert refreshed(index).fingerprint() == whole.fingerprint()


def failing(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    """The first `times` that cat/0.jpg is opened fail with error `number`."""
    opened, left = os.open, iter(range(times))

    def fails(path: Any, *arguments: Any, **keys: Any) -> int:
        if str(path).endswith("cat/0.jpg") and next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **keys)

    monkeypatch.setattr(os, "open", fails)
    monkeypatch.setattr(local, "_PAUSES_S", (0.0, 0.0))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_an_error_that_passes_makes_no_image_broken(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, number, 2)
    index = built(folder)
    assert not index.problems
    assert np.flatnonzero(index.times_ns == 0).tolist() == [8]  # so the next start reads it again
    assert refreshed(index).fingerprint() == built(folder).fingerprint() == index.fingerprint()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ESTALE, StoreUnavailable), (errno.EMFILE, DataError), (errno.ENOMEM, DataError)]
)
def test_an_error_that_stays_and_is_none_of_the_file_ends_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    failing(monkeypatch, number, 1000)
    with pytest.raises(error, match=rf"cat/0\.jpg: cannot be read.*: {os.strerror(number)}"):
        built(folder)


def test_a_file_that_the_disk_does_not_return_is_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fails)
    monkeypatch.setattr(local, "_PAUSES_S", (0.0, 0.0))
    index = built(folder)
    assert set(index.kinds.tolist()) == {Kind.BROKEN}
    assert index.problems[0].startswith("cannot be read")

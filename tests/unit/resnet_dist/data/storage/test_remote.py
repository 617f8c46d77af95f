"""Files below an address: listings, ranges, the cache, and a store that fails (fsspec's file system in memory)."""

from __future__ import annotations

import io
import logging
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from resnet_dist.data.storage import remote
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.data.storage.remote import RemoteStorage
from resnet_dist.errors import DataError, MissingPackage, RecipeError, StoreUnavailable
from resnet_dist.recipe.schema import CacheRecipe, DataRecipe

ROOT = "memory://bucket/data"
CONTENT = bytes(range(256)) * 400


class Requests:
    """Notes each request of content, and fails the next ones with `errors`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[int | None, int | None]] = []
        self.errors: list[Exception] = []
        real: Callable[..., bytes] = MemoryFileSystem.cat_file

        def noted(files: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
            self.ranges.append((start, end))
            if self.errors:
                raise self.errors.pop(0)
            return real(files, path, start=start, end=end)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)


@pytest.fixture
def files() -> Iterator[MemoryFileSystem]:
    store = MemoryFileSystem()
    for path, content in {
        "one": CONTENT,
        ".hidden": b"",
        "train/a/x.jpg": b"x",
        "train/a/deep/y.jpg": b"yy",
        "train/.b/z.jpg": b"z",
    }.items():
        store.pipe_file(f"/bucket/data/{path}", content)
    yield store
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def requests(files: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before another try; only the clock of the storage moves on."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    return pauses


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., Storage]:
    """A storage with the cache in `tmp_path`, as another process has it."""
    return lambda **keys: storage_of(ROOT, DataRecipe(root=ROOT, cache=CacheRecipe(folder=str(tmp_path)), **keys))


def test_a_listing_is_that_of_a_folder(files: MemoryFileSystem) -> None:
    found = storage_of(ROOT)
    assert [(entry.path, entry.num_bytes) for entry in found.entries()] == [("one", len(CONTENT))]
    left_out: list[str] = []
    everything = found.entries(deep=True, left_out=lambda reason, path: left_out.append(path))
    deep = [(entry.path, entry.num_bytes) for entry in everything]
    assert deep == [("one", len(CONTENT)), ("train/a/deep/y.jpg", 2), ("train/a/x.jpg", 1)]
    assert sorted(left_out) == [".hidden", "train/.b/z.jpg"]
    assert [entry.path for entry in found.entries("train/a")] == ["train/a/x.jpg"]
    assert [entry.path for entry in found.entries("train/.b")] == ["train/.b/z.jpg"]
    assert isinstance(found, RemoteStorage)
    assert found.folders("train") == ["a"]


def test_an_object_that_is_written_again_has_another_version(files: MemoryFileSystem) -> None:
    (before,) = storage_of(ROOT).entries()
    assert storage_of(ROOT).entries() == [before]
    files.pipe_file("/bucket/data/one", CONTENT)
    (after,) = storage_of(ROOT).entries()
    assert (after.num_bytes, after.time_ns != before.time_ns) == (before.num_bytes, True)


def test_any_range_is_read_with_one_request(requests: Requests) -> None:
    found = storage_of(ROOT)
    assert found.read("one") == CONTENT
    assert found.read("one", 300) == CONTENT[300:]
    assert found.read("one", 300, 5) == CONTENT[300:305]
    assert found.read("one", len(CONTENT) - 2, 100) == CONTENT[-2:]
    assert found.read("one", 5, 0) == b""
    assert requests.ranges == [(0, None), (300, None), (300, 305), (len(CONTENT) - 2, len(CONTENT) + 98)]


def test_what_has_a_version_is_asked_for_once(requests: Requests, cached: Callable[..., Storage]) -> None:
    for _ in range(2):
        found = cached()
        assert found.read("one", version="1") == CONTENT
        assert found.read("one", 10, 20, version="1") == CONTENT[10:30]
        assert found.read("one", 10, 20) == CONTENT[10:30]  # without a version
    assert requests.ranges == [(0, None), (10, 30), (10, 30), (10, 30)]
    found.read("one", version="2")
    assert requests.ranges[4:] == [(0, None)]


def test_under_order_shards_a_block_is_asked_for_once(
    requests: Requests, cached: Callable[..., Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    found = cached(order="shards")
    threads = [threading.Thread(target=found.read, args=("one", 500, 100), kwargs={"version": "1"}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for offset, num_bytes in ((0, 300), (9_000, 2_000), (5_000, 17_000), (102_000, 5_000)):
        assert found.read("one", offset, num_bytes, version="1") == CONTENT[offset : offset + num_bytes]
    assert requests.ranges == [(0, 10_000), (10_000, 20_000), (20_000, 30_000), (100_000, 110_000)]


def test_blocks_that_were_read_for_another_reason_are_used(
    requests: Requests, cached: Callable[..., Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    cached(order="shards").read("one", 9_000, 2_000, version="1")
    found = cached()
    assert found.read("one", 9_500, 1_000, version="1") == CONTENT[9_500:10_500]
    assert len(requests.ranges) == 2
    assert found.read("one", 19_500, 1_000, version="1") == CONTENT[19_500:20_500]
    assert requests.ranges[2:] == [(19_500, 20_500)]


def test_without_a_cache_no_more_is_read_than_asked_for(
    requests: Requests, tmp_path: Path, cached: Callable[..., Storage], caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.rmdir()
    tmp_path.write_bytes(b"not a folder")
    with caplog.at_level(logging.WARNING):
        for order in ("uniform", "shards"):
            found = cached(order=order)
            assert found.read("one", 500, 100, version="1") == CONTENT[500:600]
            assert found.read("one", 500, 100, version="1") == CONTENT[500:600]
    assert requests.ranges == [(500, 600)] * 4
    assert len(caplog.records) == 2  # one for each storage
    tmp_path.unlink()


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_file_for_a_library_reads_blocks(
    requests: Requests, cached: Callable[..., Storage], monkeypatch: pytest.MonkeyPatch, has_cache: bool
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    found = cached() if has_cache else storage_of(ROOT)
    with found.open("one") as file:
        assert file.read(10) == CONTENT[:10]
        assert file.read(10) == CONTENT[10:20]
        file.seek(9_990)
        assert file.read(20) == CONTENT[9_990:10_010]
        file.seek(-5, io.SEEK_END)
        assert file.read() == CONTENT[-5:]
        assert file.read(1) == b""
        file.seek(0)
        assert file.read() == CONTENT
    if has_cache:
        assert len(requests.ranges) == len(set(requests.ranges)) == 11
    with cached(order="shards").open("one") as file:
        assert file.read() == CONTENT
    assert found.read("one", 0, 5) == CONTENT[:5]


def test_a_tar_is_read_through_it(files: MemoryFileSystem, cached: Callable[..., Storage]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("a.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    files.pipe_file("/bucket/data/x.tar", packed.getvalue())
    found = cached()
    with found.open("x.tar") as file, tarfile.open(fileobj=file) as archive:
        offsets = {member.name: member.offset_data for member in archive}
    assert list(offsets) == ["a.jpg", "b.jpg"]
    assert found.read("x.tar", offsets["b.jpg"], len(CONTENT), version="1") == CONTENT


def test_what_is_not_there_is_a_data_error_at_once(requests: Requests, pauses_s: list[float]) -> None:
    found = storage_of(ROOT)
    for request in (
        lambda: found.read("nothing"),
        lambda: found.open("nothing"),
        lambda: found.entries("nothing"),
        lambda: found.folders("nothing"),  # type: ignore[attr-defined]
    ):
        with pytest.raises(DataError, match="there is no such object or bucket") as caught:
            request()
        assert caught.value.path == f"{ROOT}/nothing"
    with pytest.raises(DataError, match="it is not a file"):
        found.open("train")
    assert not pauses_s


def test_a_store_that_fails_for_a_while_is_asked_again(
    requests: Requests, pauses_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    requests.errors = [OSError(16, "Slow Down"), TimeoutError(), ConnectionResetError("reset")]
    with caplog.at_level(logging.WARNING):
        assert storage_of(ROOT).read("one") == CONTENT
    assert len(pauses_s) == 3
    assert all(low / 2 <= pause <= low for pause, low in zip(pauses_s, (0.5, 1, 2), strict=True))
    assert [record.message for record in caplog.records] == [
        f"{ROOT}/one: OSError: [Errno 16] Slow Down; tried again for up to 20 s"
    ]


@pytest.mark.parametrize(("has_answered", "patience_s"), [(True, remote.PATIENCE_S), (False, remote.FIRST_PATIENCE_S)])
def test_a_store_that_is_away_ends_the_wait(
    requests: Requests, pauses_s: list[float], has_answered: bool, patience_s: float
) -> None:
    found = storage_of(ROOT)
    if has_answered:
        found.read("one")
    requests.errors = [OSError(16, "Slow Down")] * 1000
    with pytest.raises(
        StoreUnavailable, match=r"^memory://bucket/data/one: does not answer \(OSError: .*Slow Down"
    ) as away:
        found.read("one")
    assert away.value.path == f"{ROOT}/one"
    assert patience_s / 4 < sum(pauses_s) < patience_s


def test_all_threads_give_up_together(requests: Requests, pauses_s: list[float]) -> None:
    found = storage_of(ROOT)
    found.read("one")
    requests.errors = [OSError(16, "Slow Down")] * 1000
    for _ in range(2):  # the second as one that was waiting meanwhile
        with pytest.raises(StoreUnavailable):
            found.read("one")
    assert sum(pauses_s) < remote.PATIENCE_S
    requests.errors = []
    assert found.read("one") == CONTENT
    requests.errors = [OSError(16, "Slow Down")] * 2
    assert found.read("one") == CONTENT


class NoCredentialsError(Exception):
    """Named as botocore's."""


class HttpError(Exception):
    """As gcsfs's."""

    code = 403


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), NoCredentialsError("none"), HttpError("no")])
def test_a_store_that_refuses_says_what_to_do(requests: Requests, pauses_s: list[float], error: Exception) -> None:
    requests.errors = [error]
    with pytest.raises(StoreUnavailable, match=r"one: access is refused .* AWS_ACCESS_KEY_ID .* FSSPEC_S3_ANON"):
        storage_of(ROOT).read("one")
    assert not pauses_s


def test_an_error_of_this_program_is_not_tried_again(requests: Requests, pauses_s: list[float]) -> None:
    requests.errors = [ValueError("Invalid bucket name")]
    with pytest.raises(DataError, match="ValueError: Invalid bucket name"):
        storage_of(ROOT).read("one")
    assert not pauses_s


@pytest.mark.parametrize(
    ("said", "end"), [(f"/{ROOT.partition('://')[2]}/one", ""), ("gone", " (FileNotFoundError: gone)")]
)
def test_a_path_is_not_repeated_in_an_error(requests: Requests, said: str, end: str) -> None:
    requests.errors = [FileNotFoundError(said)]
    with pytest.raises(DataError) as caught:
        storage_of(ROOT).read("one")
    assert caught.value.problem == f"there is no such object or bucket{end}"


def test_an_unknown_scheme_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"data\.root: 'nosuch://bucket': Protocol not known"):
        storage_of("nosuch://bucket")
    import fsspec

    def without(address: str, **options: Any) -> Any:
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(MissingPackage, match=r"data\.root: needs a package for gs://.*Install gcsfs"):
        storage_of("gs://bucket")

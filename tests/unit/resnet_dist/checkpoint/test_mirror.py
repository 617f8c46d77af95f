"""The mirror: a checkpoint is complete with its manifest, verified when fetched, and replaced safely."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.mirror import Mirror, complete_steps, fetch, fetch_newest
from resnet_dist.checkpoint.restore import load
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.errors import CheckpointError, MissingPackage, RecipeError, StorageError
from resnet_dist.recipe.durations import Duration

SaveStep = Callable[..., Path]
_numbers = itertools.count()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path_factory.mktemp('mirror')}/runs/one"
    else:
        yield f"memory://bucket-{next(_numbers)}/runs/one"
        MemoryFileSystem.store.clear()


@pytest.fixture
def files(url: str) -> Any:
    return fsspec.core.url_to_fs(url)[0]


def content(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, save_step: SaveStep, url: str) -> None:
    original = save_step(42)
    sent_bytes = Mirror(url, Retention()).upload(original, 42)
    assert sent_bytes == sum(record.size_bytes for record in format.read_manifest(original).values())
    expected = content(original)
    shutil.rmtree(tmp_path)  # the run directory is gone
    assert complete_steps(url) == [42]
    assert fetch(url, 42, tmp_path / "again") == tmp_path / "again" / "step-00000042"
    assert content(tmp_path / "again" / "step-00000042") == expected
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["step-00000042"]


def test_where_nothing_was_ever_mirrored_there_is_nothing(tmp_path: Path, url: str) -> None:
    assert complete_steps(url) == []
    assert fetch_newest(url, tmp_path / "again") is None


def test_it_is_complete_only_with_its_manifest(save_step: SaveStep, url: str, files: Any) -> None:
    target = Mirror(url, Retention())
    target.upload(save_step(1), 1)
    target.upload(save_step(2), 2)
    files.rm_file(f"{files._strip_protocol(url)}/step-00000002/manifest.json")
    assert complete_steps(url) == [1]


def test_the_manifest_is_sent_when_all_else_has_its_size(
    save_step: SaveStep, url: str, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(local: str, remote: str, **options: Any) -> None:
        files.pipe_file(remote, Path(local).read_bytes()[: 100 if remote.endswith("model.safetensors") else None])

    monkeypatch.setattr(type(files), "put_file", staticmethod(half))
    with pytest.raises(StorageError, match=r"step-00000001/model.safetensors: has 100 bytes, not [0-9]+$"):
        Mirror(url, Retention()).upload(save_step(1), 1)
    assert complete_steps(url) == []


def test_what_is_there_already_is_not_sent_again(
    save_step: SaveStep, url: str, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Mirror(url, Retention())
    checkpoint = save_step(1)
    target.upload(checkpoint, 1)
    sent: list[str] = []
    monkeypatch.setattr(type(files), "put_file", staticmethod(lambda local, remote, **options: sent.append(remote)))
    target.upload(checkpoint, 1)
    assert sent == []


def test_another_checkpoint_of_the_same_step_replaces_the_one_there(
    tmp_path: Path, save_step: SaveStep, url: str
) -> None:
    target = Mirror(url, Retention())
    target.upload(save_step(1), 1)
    other = save_step(2).rename(tmp_path / "other")
    shutil.rmtree(tmp_path / "step-00000001")
    other.rename(tmp_path / "step-00000001")
    target.upload(tmp_path / "step-00000001", 1)
    again = fetch(url, 1, tmp_path / "again")
    assert content(again) == content(tmp_path / "step-00000001")


def test_the_newest_stay_there_too(save_step: SaveStep, url: str, files: Any) -> None:
    target = Mirror(url, Retention(keep=2, keep_every=Duration(Fraction(1), "steps")))
    kept = Mirror(url, Retention(keep=2))
    for step in (1, 2, 3, 4):
        (target if step < 3 else kept).upload(save_step(step, keep=9), step)
    assert complete_steps(url) == [4, 3]
    assert sorted(path.rpartition("/")[2] for path in files.ls(files._strip_protocol(url), detail=False)) == [
        "step-00000003", "step-00000004",
    ]  # fmt: skip


def test_the_best_stay_there_too(tmp_path: Path, url: str, save: Callable[..., Path]) -> None:
    target = Mirror(url, Retention(keep=1, keep_best=1))
    for step, top1 in ((1, 0.9), (2, 0.5), (3, 0.4)):
        content = CheckpointContent(step, {}, {}, {"metrics": {"top1": top1}})
        target.upload(save(tmp_path, content, Retention()), step)
    assert complete_steps(url) == [3, 1]


def test_later_checkpoints_of_an_earlier_attempt_stay(save_step: SaveStep, url: str) -> None:
    target = Mirror(url, Retention(keep=1))
    for step in (8, 9, 4):
        target.upload(save_step(step), step)
    assert complete_steps(url) == [9, 4]


@pytest.mark.parametrize("name", [*format.FILES, format.MANIFEST])
def test_a_copy_that_was_altered_is_skipped_by_name_and_the_one_before_is_used(
    tmp_path: Path, save_step: SaveStep, url: str, files: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = Mirror(url, Retention())
    for step in (1, 2):
        target.upload(save_step(step), step)
    path = f"{files._strip_protocol(url)}/step-00000002/{name}"
    damaged = bytearray(files.cat_file(path))
    damaged[len(damaged) // 2] ^= 1
    files.pipe_file(path, bytes(damaged))
    with pytest.raises(CheckpointError) as caught:
        fetch(url, 2, tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []
    checkpoint = fetch_newest(url, tmp_path / "again")
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert caplog.messages == [f"checkpoint skipped: {caught.value}"]
    assert f"{url}/step-00000002/" in caplog.messages[0]


def test_copies_of_which_none_is_intact_are_an_error(tmp_path: Path, save_step: SaveStep, url: str, files: Any) -> None:
    Mirror(url, Retention()).upload(save_step(1), 1)
    files.pipe_file(f"{files._strip_protocol(url)}/step-00000001/{format.MODEL}", b"")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is intact"):
        fetch_newest(url, tmp_path / "again")


def test_an_intact_local_one_is_kept_and_a_damaged_one_replaced(tmp_path: Path, save_step: SaveStep, url: str) -> None:
    original = save_step(1)
    Mirror(url, Retention()).upload(original, 1)
    before = (original / format.MODEL).stat().st_ino
    assert fetch(url, 1, tmp_path) == original
    assert (original / format.MODEL).stat().st_ino == before
    (original / format.MODEL).write_bytes(b"torn")
    assert load(fetch(url, 1, tmp_path)).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_not_sent(save_step: SaveStep, url: str) -> None:
    checkpoint = save_step(1)
    (checkpoint / format.MODEL).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="has 4 bytes"):
        Mirror(url, Retention()).upload(checkpoint, 1)
    assert complete_steps(url) == []


class ServiceError(Exception):
    """Libraries of object stores raise errors that are not OSErrors."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ServiceError("An error occurred (AccessDenied):\n  no"), "ServiceError: An error occurred (AccessDenied): no"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "OSError: [Errno 28] No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_whatever_a_store_raises_is_a_storage_error_that_names_it(
    tmp_path: Path,
    save_step: SaveStep,
    url: str,
    files: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    target = Mirror(url, Retention())
    target.upload(save_step(1), 1)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    for method in ("put_file", "get_file", "ls"):
        monkeypatch.setattr(type(files), method, refuse)
    for action in (
        lambda: target.upload(save_step(2), 2),
        lambda: fetch(url, 1, tmp_path / "again"),
        lambda: complete_steps(url),
    ):
        with pytest.raises(StorageError) as caught:
            action()
        assert str(caught.value) == f"{url}: {message}"


def test_old_ones_that_cannot_be_deleted_cost_space_only(
    save_step: SaveStep, url: str, files: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = Mirror(url, Retention(keep=1))
    target.upload(save_step(1), 1)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(type(files), "rm", refuse)
    target.upload(save_step(2), 2)
    assert complete_steps(url) == [2]
    assert caplog.messages == [f"an old checkpoint could not be deleted: {url}: PermissionError: no"]


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingPackage, match=r"pip install 'resnet-launcher\[mirror\]'"):
        Mirror("s3://bucket/run", Retention())


def test_a_store_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(MissingPackage, match=r"needs a package for s3://.*Install s3fs to access S3"):
        Mirror("s3://bucket/run", Retention())


def test_an_unknown_protocol_is_an_error_of_the_config() -> None:
    with pytest.raises(RecipeError, match=r"checkpoint.mirror: 's4://bucket/run': Protocol not known: s4"):
        Mirror("s4://bucket/run", Retention())


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_send_that_is_cut_off_anywhere_leaves_the_one_before(
    tmp_path: Path, save_step: SaveStep, url: str, files: Any, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    target = Mirror(url, Retention(keep=1))
    target.upload(save_step(1), 1)
    calls = itertools.count(1)

    def cut_off(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if next(calls) >= cut:
                raise ConnectionError("cut off")
            return method(self, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("put_file", "pipe_file", "rm", "rm_file"):
            patch.setattr(type(files), name, cut_off(getattr(type(files), name)))
        with contextlib.suppress(StorageError):
            target.upload(save_step(2), 2)
    checkpoint = fetch_newest(url, tmp_path / "again")
    assert checkpoint is not None
    assert checkpoint.step == (2 if cut > 4 else 1)
    assert torch.equal(checkpoint.model()["bn1.num_batches_tracked"], torch.tensor(checkpoint.step))
    target.upload(save_step(3), 3)
    assert complete_steps(url) == [3]


@pytest.mark.parametrize(("protocol", "folders"), [(("s3", "s3a"), 0), ("sftp", 1)])
def test_folders_are_not_created_in_object_stores(
    save_step: SaveStep, monkeypatch: pytest.MonkeyPatch, protocol: Any, folders: int
) -> None:
    created: list[str] = []

    def put_file(self: MemoryFileSystem, local: str, remote: str) -> None:
        self.pipe_file(remote, Path(local).read_bytes())

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    monkeypatch.setattr(MemoryFileSystem, "protocol", protocol)
    monkeypatch.setattr(MemoryFileSystem, "makedirs", lambda self, path, exist_ok: created.append(path))
    Mirror(f"memory://bucket-{next(_numbers)}/run", Retention()).upload(save_step(1), 1)
    assert len(created) == folders

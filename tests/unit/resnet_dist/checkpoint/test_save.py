"""Saving: complete or absent, the newest are kept, errors say what to do."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.folders import ABANDONED_AFTER_S, temporary_folder
from resnet_dist.checkpoint.restore import load, newest
from resnet_dist.checkpoint.save import write
from resnet_dist.errors import StorageError

SaveStep = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_names(*steps: int) -> list[str]:
    return [format.folder_name(step) for step in steps]


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


def test_a_checkpoint_holds_its_four_files_and_nothing_stays_beside_it(tmp_path: Path, save_step: SaveStep) -> None:
    assert save_step(42) == tmp_path / "step-00000042"
    assert names(tmp_path) == ["step-00000042"]
    assert names(tmp_path / "step-00000042") == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_the_newest_few_are_kept(tmp_path: Path, save_step: SaveStep) -> None:
    for step in (10, 20, 30, 40):
        save_step(step, keep=2)
    assert names(tmp_path) == step_names(30, 40)


def test_a_broken_checkpoint_is_not_one_of_the_few(tmp_path: Path, save_step: SaveStep) -> None:
    for step in (10, 20, 30):
        save_step(step)
    (tmp_path / "step-00000020" / format.MODEL).unlink()
    save_step(40, keep=3)
    assert names(tmp_path) == step_names(10, 20, 30, 40)
    save_step(50, keep=3)  # three newer ones are complete: the broken one goes too
    assert names(tmp_path) == step_names(30, 40, 50)


def test_a_later_checkpoint_never_costs_the_one_just_written(tmp_path: Path, save_step: SaveStep) -> None:
    save_step(45)
    path = tmp_path / "step-00000045" / format.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # right in size: only its hash tells
    path.write_bytes(content)
    save_step(40, keep=1)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 40


def test_saving_a_step_twice_keeps_the_first(tmp_path: Path, save_step: SaveStep) -> None:
    written = (save_step(5) / format.MANIFEST).stat()
    again = (save_step(5) / format.MANIFEST).stat()
    assert (written.st_ino, written.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


@pytest.mark.parametrize("name", [*format.FILES, format.MANIFEST])
def test_saving_over_a_broken_checkpoint_replaces_it(tmp_path: Path, save_step: SaveStep, name: str) -> None:
    (save_step(5) / name).write_bytes(b"torn")
    assert load(save_step(5)).step == 5
    assert names(tmp_path) == step_names(5)


def test_what_dead_writers_left_is_removed_and_a_living_ones_is_not(tmp_path: Path, save_step: SaveStep) -> None:
    host, living = socket.gethostname(), os.getppid()
    left = [
        temporary_folder(tmp_path, 1, f"{host}-{dead_pid()}-0badcafe"),
        temporary_folder(tmp_path, 1, f"{host}-{os.getpid()}-0badcafe"),
        temporary_folder(tmp_path, 2, f"another-host-7-{living}-0badcafe"),
    ]
    stays = [temporary_folder(tmp_path, 3, f"{writer}-0badcafe") for writer in (f"{host}-{living}", "elsewhere-1")]
    for path in left + stays:
        path.mkdir()
        (path / format.MODEL).write_bytes(b"half")
    before = left[2].stat().st_mtime - ABANDONED_AFTER_S - 1
    os.utime(left[2], (before, before))
    save_step(4)
    assert names(tmp_path) == sorted([*(path.name for path in stays), "step-00000004"])


def test_every_file_is_on_the_disk_before_the_folder_gets_its_name(
    tmp_path: Path, save_step: SaveStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def recorded_rename(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        done.append(f"renamed to {Path(target).name}")

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    save_step(6)
    assert done[:3] == [format.MODEL, format.OPTIMIZER, format.STATE]
    assert done[3] == format.MANIFEST
    assert done[4].startswith(".step-00000006.tmp-")
    assert done[5:] == ["renamed to step-00000006", tmp_path.name]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space, or lower checkpoint.keep"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_refuses_is_a_storage_error_and_leaves_the_old_checkpoints(
    tmp_path: Path, save_step: SaveStep, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    save_step(1, keep=1)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=message) as caught:
        save_step(2, keep=1)
    assert caught.value.path == str(tmp_path)
    assert names(tmp_path) == step_names(1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Not a directory") as caught:
        write(tmp_path / "file" / "checkpoints", CheckpointContent(1, {}, {}, {}))
    assert caught.value.path == str(tmp_path / "file" / "checkpoints")


def test_what_no_checkpoint_can_hold_is_a_value_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write(tmp_path, CheckpointContent(1, {}, {}, {"loss": float("nan")}))
    with pytest.raises(ValueError, match="complex64"):
        write(tmp_path, CheckpointContent(1, {"a": torch.zeros(1, dtype=torch.complex64)}, {}, {}))
    with pytest.raises(ValueError, match="slash"):
        write(tmp_path, CheckpointContent(1, {}, {"a": {"b/c": torch.zeros(1)}}, {}))
    assert names(tmp_path) == []

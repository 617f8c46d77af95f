"""Two commands never write to one folder at the same time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.prepare import imagenet_folders
from launcher.prepare.locks import locked
from resnet_dist.errors import DataError


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    for _ in range(2):
        with locked(file, tmp_path):
            with pytest.raises(DataError, match="another process is writing to this folder"), locked(file, tmp_path):
                pass
            assert file.exists()
        assert not list(tmp_path.iterdir())


def test_a_lock_that_its_holder_deletes_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = fcntl.flock

    def late(file: Any, operation: int) -> None:
        os.unlink(tmp_path / "lock")  # noqa: PTH108  the holder ends between opening and locking
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(DataError, match="another process"), locked(tmp_path / "lock", tmp_path):
        pass


def test_imagenet_is_written_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    from small_imagenet import write_files

    files = write_files(tmp_path)
    half = files.folder / ".train-partial" / ".n01440764"
    half.mkdir(parents=True)
    lock = files.folder / imagenet_folders._LOCK
    with locked(lock, files.folder):
        assert files.run() == 65
    assert f"{files.folder}: another process is writing to this folder: wait until it" in capsys.readouterr().err
    assert half.exists()
    assert files.run() == 0
    assert not lock.exists()

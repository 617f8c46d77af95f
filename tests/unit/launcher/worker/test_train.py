"""What a worker does when its storage does not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import _log_to
from resnet_dist.errors import StorageError
from resnet_dist.stop_request import Request


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_stop_file_that_cannot_be_looked_for_stops_nobody_until_it_can(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop").touch()
    supervisor = FileSupervisor(stop_file=tmp_path / "stop", notice_file=tmp_path / "notice")

    def fails(path: Path) -> bool:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", fails)
        assert [supervisor.request(), supervisor.request()] == [Request.CONTINUE, Request.CONTINUE]
    assert supervisor.request() is Request.STOP


def test_a_notice_that_cannot_be_told_stops_the_worker_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "notice").touch()

    def disk_is_full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = FileSupervisor(notice_file=tmp_path / "notice", on_notice=disk_is_full)
    assert supervisor.request() is Request.STOP
    assert supervisor.noticed


def test_a_log_that_cannot_be_opened_is_a_fault_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(StorageError, match="logs"):
        _log_to(tmp_path / "logs" / "rank-0.log")

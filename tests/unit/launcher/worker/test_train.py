"""A worker whose storage fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.recovery.attempt import AttemptSpec
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import train_worker
from resnet_dist.errors import StorageError


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_stop_request_that_cannot_be_checked_is_obeyed_once_it_can(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = AttemptLogs(tmp_path)
    logs.stop_request.touch()
    supervisor = FileSupervisor(logs, 0, notice_file=str(tmp_path / "notice"))

    def fails(path: Path) -> bool:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", fails)
        assert [supervisor.stop_requested(), supervisor.stop_requested()] == [False, False]
    assert supervisor.stop_requested()


def test_only_rank_0_checks_the_stop_request(tmp_path: Path) -> None:
    AttemptLogs(tmp_path).stop_request.touch()
    assert [FileSupervisor(AttemptLogs(tmp_path), rank).stop_requested() for rank in (0, 1)] == [True, False]


def test_a_preemption_notice_that_cannot_be_recorded_stops_the_worker_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "notice").touch()
    supervisor = FileSupervisor(AttemptLogs(tmp_path / "missing"), 1, notice_file=str(tmp_path / "notice"))
    assert supervisor.stop_requested()


def test_a_log_that_cannot_be_opened_is_a_storage_error(
    write_config: Callable[..., Path], small_run: RunDirectory
) -> None:
    small_run.logs(1).path.touch()
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0)
    with pytest.raises(StorageError, match="logs"):
        train_worker(configs.load(write_config()), assignment, FileSupervisor(small_run.logs(1), 0))

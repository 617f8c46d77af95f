"""A worker whose storage fails."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.config import load as configs
from launcher.errors import CollectiveFault, UserCodeError
from launcher.recovery.attempt import AttemptSpec
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import _AbandonableLiveness, train_worker
from resnet_dist.errors import DataError, StorageError


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


def test_an_evaluation_ends_at_its_next_batch_once_the_attempt_has_failed_on_another_worker() -> None:
    failed = iter([False, True])
    batches = _AbandonableLiveness(lambda: next(failed)).beating(["first", "second"])
    assert next(batches) == "first"
    with pytest.raises(CollectiveFault, match="failed on another worker"):
        next(batches)


def test_a_log_that_cannot_be_opened_is_a_storage_error(
    write_config: Callable[..., Path], small_run: RunDirectory
) -> None:
    small_run.logs(1).path.touch()
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0)
    with pytest.raises(StorageError, match="logs"):
        train_worker(configs.load(write_config()), assignment, FileSupervisor(small_run.logs(1), 0))


class UserError(Exception):
    def __str__(self) -> str:
        raise OSError("no message")


@pytest.mark.parametrize(
    ("watched", "error", "expected"),
    [
        (True, UserError(), UserCodeError),
        (True, SystemExit(3), UserCodeError),
        (False, UserError(), UserError),  # a notebook gets its own exception
        (False, KeyboardInterrupt(), KeyboardInterrupt),
        (True, DataError("a.jpg", "broken"), DataError),
    ],
)
def test_an_error_leaves_a_process_of_the_run_without_classes_of_the_user(
    watched: bool,
    error: BaseException,
    expected: type[BaseException],
    write_config: Callable[..., Path],
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr("launcher.worker.train.build", build)
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0, watched=watched)
    config = configs.load(write_config("faults: {preflight: false}", "log: {tensorboard: false}"))
    with pytest.raises(expected) as raised:
        train_worker(config, assignment, FileSupervisor(small_run.logs(1), 0))
    assert type(raised.value) is expected
    assert f"{type(error).__name__}" in small_run.logs(1).log(0).read_text()  # the traceback


def test_a_full_disk_under_the_log_of_a_rank_is_reported_once_and_ends_nothing(
    write_config: Callable[..., Path],
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(*_: object) -> SimpleNamespace:
        for _ in range(10):
            logging.getLogger("launcher").warning("the disk is full")
        done = SimpleNamespace(step=7, finished=True, evaluation=None, reached=None, times=None)
        return SimpleNamespace(fit=lambda: done, parts=SimpleNamespace(bad=None))

    small_run.logs(1).path.mkdir()
    small_run.logs(1).log(0).symlink_to("/dev/full")
    monkeypatch.setattr("launcher.worker.train.build", build)
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0)
    config = configs.load(write_config("faults: {preflight: false}", "log: {tensorboard: false}"))
    assert train_worker(config, assignment, FileSupervisor(small_run.logs(1), 0)).step == 7
    errors = capsys.readouterr().err
    assert errors.count("No space left on device") == 1
    assert "Traceback" not in errors

"""What a worker leaves behind, with a group of one; tests/distributed has several."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from launcher import cli
from launcher.errors import WorkerLost
from launcher.inference import workers
from launcher.inference.evaluate import Evaluated, Request, evaluate_checkpoint
from launcher.inference.trained import saved
from resnet_dist.errors import DataError


@pytest.fixture
def no_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process group that a worker makes, and its variables, are gone after the test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        del os.environ[name]
    yield
    if dist.is_initialized():  # a worker leaves it after an error
        dist.destroy_process_group()


@pytest.mark.usefixtures("no_group")
def test_a_worker_leaves_the_result(trained_run: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    workers._work(0, 1, tmp_path, saved(trained_run), Request(), lambda *told: seen.append(told))
    found = pickle.loads((tmp_path / "result").read_bytes())
    assert isinstance(found, Evaluated)
    assert found.evaluation == evaluate_checkpoint(saved(trained_run)).evaluation
    assert seen[-1] == ("evaluated", 21, 21)


@pytest.mark.usefixtures("no_group")
def test_the_error_of_a_worker_keeps_its_class(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        workers._work(0, 1, tmp_path, saved(trained_run), Request(data=str(tmp_path / "nothing")), None)
    error = ProcessRaisedException("its traceback", 0, 4711)
    found = workers._failure(tmp_path, error)
    assert isinstance(found, DataError)
    assert "No such file" in str(found)


def test_the_first_error_counts_and_not_those_that_it_causes(tmp_path: Path) -> None:
    for rank, text in ((1, "the cause"), (0, "connection closed by peer")):
        (tmp_path / f"error-{rank}").write_bytes(pickle.dumps(DataError("x.jpg", text)))
        os.utime(tmp_path / f"error-{rank}", ns=(0, time.time_ns() + (1 - rank) * 10**9))
    assert "the cause" in str(workers._failure(tmp_path, ProcessRaisedException("", 0, 4711)))


def test_a_worker_that_was_killed_is_named(tmp_path: Path) -> None:
    (tmp_path / "error-0").write_bytes(pickle.dumps(DataError("x.jpg", "connection closed by peer")))
    error = ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 4711, exit_code=-9)
    found = workers._failure(tmp_path, error)
    assert isinstance(found, WorkerLost)
    assert "worker 1 on" in str(found)
    assert "SIGKILL" in str(found)


def test_workers_are_not_chosen_under_torchrun(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["evaluate", str(trained_run), "--workers", "2"]) == 64
    assert "torchrun has started the workers" in capsys.readouterr().err

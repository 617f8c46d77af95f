"""The process that evaluates beside training: where there is none, and when it ends."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import Resources
from launcher.errors import WorkerLost
from launcher.local.beside import LocalEvaluations
from launcher.run.directory import RunDirectory
from resnet_dist.training.beside import Unavailable


@pytest.mark.parametrize(("num_gpus", "available"), [(0, False), (2, False), (3, True)])
def test_a_run_on_gpus_needs_one_more(
    num_gpus: int,
    available: bool,
    write_config: Callable[..., Path],
    small_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(configs.load(write_config()), resources=Resources(gpus_per_worker=1))
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    if available:
        assert LocalEvaluations(config, small_run, small_run.logs(1), 2)._device == "cuda:2"
    else:
        with pytest.raises(Unavailable, match=r"no GPU beside those of its workers \(2\)"):
            LocalEvaluations(config, small_run, small_run.logs(1), 2)


def test_a_process_that_ends_is_an_error_and_is_started_again(
    write_config: Callable[..., Path], small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.logs(1).path.mkdir(parents=True)
    host = LocalEvaluations(configs.load(write_config()), small_run, small_run.logs(1), 1)
    host.close()  # nothing runs yet
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for step in (10, 20):
        host.start(step)
        while (ended := host.ended()) is None:
            time.sleep(0.01)
        assert isinstance(ended, WorkerLost)
        assert "ended with code 1: see" in str(ended)
    host.close()
    host.close()

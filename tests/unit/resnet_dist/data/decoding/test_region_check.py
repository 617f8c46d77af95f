"""The trial of region decoding in a child process: with DALI on the CPU, and with children that die, fail and hang."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from resnet_dist.data.decoding import dali, region_check
from resnet_dist.data.decoding.region_check import RegionCheck, command_for, try_regions, warn_of
from resnet_dist.recipe.schema import DaliRecipe, DataRecipe

needs_dali = pytest.mark.skipif(not dali.is_installed(), reason="NVIDIA DALI is not installed")
GPU = torch.device("cuda", 1)
DATA = DataRecipe(root="/data", decoder="dali")


def python(code: str, time_limit_s: float = 60.0) -> RegionCheck:
    return RegionCheck([sys.executable, "-c", code], time_limit_s)


@needs_dali
def test_the_real_child_decodes_regions_on_the_cpu() -> None:
    assert RegionCheck(command_for(DaliRecipe(), None)).problem is None


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is absent, and this machine has a GPU")
def test_the_real_child_says_why_it_cannot_decode_on_a_gpu() -> None:
    problem = RegionCheck(command_for(DaliRecipe(), 0)).problem
    assert problem is not None
    assert problem.startswith("a trial in a child process failed: RuntimeError: ")
    assert "GPU" in problem


def test_a_child_that_dies_of_a_segmentation_fault_is_a_problem_and_no_error() -> None:
    problem = python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").problem
    assert problem == "a trial in a child process ended with SIGSEGV"


def test_a_child_that_fails_is_a_problem_with_its_last_line() -> None:
    problem = python("print('text'); raise RuntimeError('nvJPEG error 5')").problem
    assert problem == "a trial in a child process failed: RuntimeError: nvJPEG error 5"
    assert python("raise SystemExit(3)").problem == "a trial in a child process failed: exit code 3"


def test_a_child_that_hangs_is_ended_after_the_time_limit_and_leaves_no_process() -> None:
    check = python("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)", 0.5)
    assert check.problem == "a trial in a child process has not ended within 0.5 s"
    assert check._child.returncode == -signal.SIGKILL
    assert check.problem == "a trial in a child process has not ended within 0.5 s"  # not waited for again


def test_a_child_that_succeeds_is_no_problem() -> None:
    assert python("pass").problem is None


def test_a_child_that_nobody_asks_about_ends_with_its_check() -> None:
    check = python("import time; time.sleep(1000)")
    child = check._child
    del check
    gc.collect()
    assert child.returncode == -signal.SIGKILL


def test_a_child_whose_parent_is_killed_ends_also_during_its_imports() -> None:
    code = f"{region_check._BEGIN}print('begun', flush=True); import time; time.sleep(1000)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE)\n"
            "child.wait()",
            code,
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        assert output.readline() == b"begun\n"
        parent.kill()
        parent.wait()
        killed = time.monotonic()
        assert output.read() == b""  # returns when the child, which has the other end, is gone
        assert time.monotonic() - killed < region_check.TIME_LIMIT_S  # not by its alarm


def test_signals_to_all_processes_of_a_run_do_not_end_the_trial() -> None:
    send = "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2): os.kill(os.getpid(), number)"
    assert python(region_check._BEGIN + send).problem is None


def test_a_child_that_cannot_be_killed_otherwise_ends_by_an_alarm() -> None:
    left = "raise SystemExit(f'{signal.alarm(0)} s left')"
    problem = python(region_check._BEGIN + left).problem
    assert problem == f"a trial in a child process failed: {region_check.TIME_LIMIT_S + 10:g} s left"


@needs_dali
def test_regions_with_the_pixels_of_other_regions_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []

    class Shifted(dali.Pipeline):
        def next(self) -> torch.Tensor:
            decoded.append(super().next())
            return decoded[-1].flip(2) if len(decoded) == 1 else decoded[-1]

    monkeypatch.setattr(dali, "Pipeline", Shifted)
    with pytest.raises(RuntimeError, match="pixels of regions differ from those of whole images by"):
        try_regions(None, DaliRecipe())


def test_the_trial_has_windows_at_every_edge_of_images_of_every_kind() -> None:
    samples = region_check._samples()
    assert len({content for content, _ in samples}) == 16
    tops, lefts = ({window[side] > 0 for _, window in samples} for side in (0, 1))
    assert tops == lefts == {True, False}
    assert all(np.array(window).min() >= 0 for _, window in samples)


# --- when it is tried


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The children that are started."""
    started: list[Any] = []

    class Child:
        stdin = None

        def __init__(self, command: Any, **_: Any) -> None:
            started.append(command)

        def kill(self) -> None: ...

        def wait(self, _: float) -> int:
            return 0

    monkeypatch.setattr(region_check, "uses_dali", lambda data, on_gpu: on_gpu and data.decoder == "dali")
    monkeypatch.setattr(subprocess, "Popen", Child)
    region_check._started.cache_clear()
    yield started
    region_check._started.cache_clear()


def test_a_process_tries_once_for_a_gpu_and_its_settings(commands: list[Any]) -> None:
    one = region_check.region_check(DATA, GPU)
    assert region_check.region_check(DATA, GPU) is one
    assert commands == [command_for(DaliRecipe(), 1)]


@pytest.mark.parametrize(
    ("data", "device"),
    [
        (DATA, torch.device("cpu")),
        (DataRecipe(root="/data", decoder="torchvision"), GPU),
        (DataRecipe(source="synthetic", num_samples=4), GPU),
    ],
)
def test_nothing_is_tried_where_dali_decodes_nothing_on_a_gpu(
    data: DataRecipe, device: torch.device, commands: list[Any]
) -> None:
    assert region_check.region_check(data, device) is None
    assert commands == []


def test_the_fallback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        warn_of("it died")
        warn_of("it died")
    [record] = caplog.records
    assert record.getMessage().endswith("takes longer than decoding regions: it died")


def test_the_child_runs_beside_the_caller() -> None:
    check = python("import time; time.sleep(0.5)")
    assert check._child.poll() is None
    assert check.problem is None

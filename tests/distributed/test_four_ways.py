"""One file, four ways to run it, one loss curve: float64, shares of 37 samples that are not equal.

A job of a Ray cluster, the fourth, is in test_submit_ray.py, which has one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Train = Callable[..., str]
Losses = Callable[[Path], dict[int, float]]
OneCurve = Callable[[Path], None]


@pytest.mark.smoke
def test_one_process_trains_all_steps_and_is_marked_finished(one_process: Path, losses_of: Losses) -> None:
    assert sorted(losses_of(one_process)) == list(range(1, 21))
    assert (one_process / "FINISHED").exists()


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.smoke), 3])
def test_torchrun_has_the_losses_of_one_process(
    config_file: Path, train: Train, assert_one_curve: OneCurve, workers: int
) -> None:
    train(f"workers={workers}", processes=workers)
    assert_one_curve(config_file.parent / "runs" / "tiny")


@pytest.mark.smoke
def test_zero_has_the_losses_of_one_process_within_float32(
    config_file: Path, train: Train, losses_of: Losses, one_process: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    train("engine={name: zero, stage: 2}", "precision=float32", "workers=2", processes=2)
    found, expected = losses_of(config_file.parent / "runs" / "tiny"), losses_of(one_process)
    assert sorted(found) == sorted(expected)
    gaps = [abs(found[step] - loss) / abs(loss) for step, loss in expected.items()]
    assert gaps[0] < 1e-6
    assert max(gaps) < 1e-3


@pytest.mark.ray
@pytest.mark.smoke
def test_ray_has_the_losses_of_one_process(config_file: Path, train: Train, assert_one_curve: OneCurve) -> None:
    train("place=ray", "workers=2")
    assert_one_curve(config_file.parent / "runs" / "tiny")


@pytest.mark.ray
def test_broken_image_ends_a_ray_run_with_65_and_is_never_retried(
    config_file: Path, digits: Path, train: Train, attempts_of: Callable[[Path], list[dict[str, object]]]
) -> None:
    broken = config_file.parent / "broken"
    shutil.copytree(digits, broken)
    victim = sorted((broken / "train" / "3").iterdir())[0]
    victim.write_text("no image")
    output = train(f"data.root={broken}", "place=ray", "workers=2", code=65)
    assert str(victim) in output
    assert "Traceback" not in output
    ended = [line for line in attempts_of(config_file.parent / "runs" / "tiny") if line["event"] == "ended"]
    assert [line["exit_code"] for line in ended] == [65]


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_the_losses_stay(
    config_file: Path,
    train: Callable[..., str],
    start: Callable[..., subprocess.Popen[str]],
    losses_of: Callable[[Path], dict[int, float]],
) -> None:
    storage = config_file.parent / "runs"
    train("name=undisturbed", processes=2)
    process = start("name=fault_run", "place=ray", "workers=2", "checkpoint.every=4 steps", "data.prefetch=1")
    victim = wait_for_worker(storage / "fault_run", process)
    os.kill(victim, 9)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "starting again: failure 1 of 3" in output
    found, expected = losses_of(storage / "fault_run"), losses_of(storage / "undisturbed")
    assert found == expected  # the same topology: bit-identical


def wait_for_worker(run: Path, driver: subprocess.Popen[str]) -> int:
    """Wait until the run has a few steps, and return the process id of one of its training workers."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"train"') >= 5):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                maps = b"rank-" in b"".join(bytes(link.readlink()) for link in (process / "fd").iterdir())
            except OSError:
                continue
            if command.startswith(b"ray::") and maps:
                return int(process.name)
    raise AssertionError("no worker holds a rank's log file")

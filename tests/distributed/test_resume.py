"""Killed, stopped or asked twice: a run goes on at the next step, with the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.checkpoint import restore

Start = Callable[..., "subprocess.Popen[str]"]
Train = Callable[..., str]
Losses = Callable[[Path], dict[int, float]]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and f'"train", "step": {step},' in metrics.read_text()):
        if process.poll() is not None:
            pytest.fail(process.communicate()[0])
        assert time.monotonic() < deadline
        time.sleep(0.005)


def weights(run: Path) -> dict[str, Any]:
    checkpoint = restore.newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.model()


def test_a_killed_run_resumes_with_the_same_bits(
    config_file: Path, train: Callable[..., str], start: Start, losses_of: Losses
) -> None:
    storage = config_file.parent / "runs"
    resolutions = ("data.resolution=32", "data.progressive={30 %: 24, 60 %: 32}")
    overrides = ("precision=float32", "duration=40 steps", "checkpoint.every=3 steps", *resolutions)
    train("name=undisturbed", *overrides)
    process = start("name=killed", *overrides)
    wait_for_step(storage / "killed", random.randint(4, 20), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    output = train("name=killed", *overrides, "--resume", "must")
    assert "resumes at step" in output
    assert losses_of(storage / "killed") == losses_of(storage / "undisturbed")
    found, expected = weights(storage / "killed"), weights(storage / "undisturbed")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_a_signal_saves_at_a_step_boundary_and_loses_no_step(
    config_file: Path, train: Callable[..., str], start: Start, number: signal.Signals, code: int
) -> None:
    run = config_file.parent / "runs" / "tiny"
    overrides = ("duration=400 steps", "data.resolution=32")
    process = start(*overrides)
    wait_for_step(run, 3, process)
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)  # repeats are ignored while saving
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    saved = restore.newest(run / "checkpoints")
    assert saved is not None
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert (last["event"], last["step"]) == ("stopped", saved.step)
    assert f"saved at step {saved.step}" in output


def test_a_finished_run_is_found_finished_and_refused_as_another_one(
    config_file: Path, train_here: Train, train: Train
) -> None:
    short = ("duration=2 steps", "schedule.warmup=0 steps")
    train_here(*short)
    assert (config_file.parent / "runs" / "tiny" / "FINISHED").exists()
    assert "finished already" in train_here(*short)
    assert "seed: the run has 0, the config 1" in train_here(*short, "seed=1", code=78)
    output = train(*short, "batch_norm.span=1", "workers=2", processes=2, code=1)  # torchrun's own code
    assert "batch_norm.span: the run has 37, the config 1" in output
    assert "exitcode  : 78" in output
    assert "finished already" in train(*short, "workers=2", processes=2)


def test_a_longer_duration_goes_on(config_file: Path, train_here: Train, train: Train, losses_of: Losses) -> None:
    constant = ("schedule.decay=constant", "schedule.warmup=2 steps")
    train_here("duration=4 steps", *constant)
    train("duration=8 steps", *constant)
    train_here("name=at-once", "duration=8 steps", *constant)
    storage = config_file.parent / "runs"
    assert losses_of(storage / "tiny") == losses_of(storage / "at-once")


def test_resume_modes_refuse_what_they_must(train_here: Train, train: Train) -> None:
    assert "there is no checkpoint" in train("--resume", "must", code=64)
    train_here("duration=2 steps", "schedule.warmup=0 steps")
    assert "another name" in train_here("--resume", "never", "duration=9 steps", code=64)
    output = train("duration=9 steps", "seed=1", "batch.size=40", code=78)
    assert "seed: the run has 0, the config 1" in output
    assert "batch.size: the run has 37, the config 40" in output


def test_divergence_exits_79_and_saves_nothing_of_it(config_file: Path, train_here: Train) -> None:
    overrides = ("schedule.peak_lr=1e300", "schedule.warmup=0 steps", "checkpoint.every=1 steps")
    output = train_here("optimizer={name: sgd}", *overrides, code=79)
    assert "training diverged" in output
    run = config_file.parent / "runs" / "tiny"
    assert json.loads((run / "FATAL").read_text())["exit_code"] == 79

"""Studies as a user starts them: as a process that trains its runs in worker processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.telemetry.metrics_file import read_metrics
from tests.distributed.conftest import environment

BASE = """\
schema: 1
name: base
storage: runs
duration: 6 steps
model: {name: "failing:model", num_classes: 2}
data: {root: images, resolution: 16}
batch: {size: 4}
batch_norm: {span: global}
schedule: {peak_lr: 0.05}
evaluate: {every: 3 steps}
checkpoint: {every: 1000 steps}
log: {every_steps: 1, tensorboard: false}
faults: {preflight: false}
"""
# A model that raises, or kills its process, or takes its time.
MODEL = """\
import os, signal, time
import torch
from torch import nn

class Pause(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
    def forward(self, x):
        time.sleep(self.seconds)
        return x

def model(*, num_classes, fails="", pause_s=0.0):
    if fails == "raises":
        raise ValueError("this model does not work")
    if fails == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(Pause(pause_s), *layers, nn.Linear(4, num_classes))
"""


class Folder:
    """A folder with images, a model, a base config and a study."""

    def __init__(self, path: Path, study: str, base: str) -> None:
        self.path = path
        (path / "failing.py").write_text(MODEL)
        (path / "base.yaml").write_text(base)
        (path / "study.yaml").write_text(f"study: 1\nname: small\nbase: base.yaml\n{study}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the study."""
        command = [sys.executable, "-m", "launcher", "study", str(self.path / "study.yaml"), *arguments]
        variables = {**environment(), "PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)

    def study(self, *arguments: str) -> tuple[int, str]:
        """Run the study to its end: its exit code and what it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=240)
        return process.returncode, printed

    def run(self, name: str) -> Path:
        """The run directory of a run."""
        return self.path / "runs" / "small" / "runs" / name

    def losses(self, name: str) -> list[tuple[int, float]]:
        """Step and training loss of all train records."""
        records = read_metrics(self.run(name) / "metrics.jsonl")
        return [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """The starts of a run."""
        lines = (self.run(name) / "attempts.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == "started"]

    def rows(self) -> dict[str, dict[str, str]]:
        """results.csv by the names of the runs."""
        lines = (self.path / "runs" / "small" / "results.csv").read_text().splitlines()
        return {row["run"]: row for row in csv.DictReader(lines)}


@pytest.fixture
def make(tmp_path: Path, write_images: Callable[[Path], Path]) -> Callable[..., Folder]:
    write_images(tmp_path / "images")

    def folder(study: str, base: str = BASE) -> Folder:
        return Folder(tmp_path, study, base)

    return folder


def test_runs_share_a_process_and_are_the_same_as_alone(make: Callable[..., Folder]) -> None:
    folder = make(
        "grid: {schedule.peak_lr: [0.01, 0.1]}\nseeds: [0, 1]\ncompare: {baseline: {schedule.peak_lr: 0.01}}\n"
        "figures: [{kind: curve, y: train.loss}]"
    )
    code, printed = folder.study("--jobs", "1")
    assert code == 0, printed
    assert "small: 4 of 4 runs done, 0 running, 0 failed, 0:00 left" in printed
    assert "starts at step 0" not in printed  # what runs print is in their directories
    names = [f"peak_lr-{rate}_seed-{seed}" for rate in ("0.01", "0.1") for seed in (0, 1)]
    assert [row["status"] for row in folder.rows().values()] == ["finished"] * 4
    assert len({folder.attempts(name)[0]["pid"] for name in names}) == 1
    assert "step 6/6" in (folder.run(names[1]) / "output.log").read_text()
    assert len({(folder.run(name) / "index" / "train.safetensors").stat().st_ino for name in names}) == 1  # one index

    last = names[-1]
    alone = [sys.executable, "-m", "launcher.train", str(folder.run(last) / "config.yaml")]
    variables = {**environment(), "PYTHONPATH": str(folder.path)}
    subprocess.run([*alone, f"storage={folder.path / 'alone'}"], check=True, env=variables, capture_output=True)
    records = read_metrics(folder.path / "alone" / last / "metrics.jsonl")
    expected = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    assert folder.losses(last) == expected


def test_the_others_finish_when_a_run_raises_or_its_process_dies(make: Callable[..., Folder]) -> None:
    folder = make("grid: {model.arguments.fails: [a, raises, dies, b]}")
    code, printed = folder.study("--jobs", "1")
    assert code == 1, printed
    rows = folder.rows()
    assert [rows[f"fails-{name}_seed-0"]["status"] for name in ("a", "raises", "dies", "b")] == [
        "finished", "failed", "failed", "finished",
    ]  # fmt: skip
    assert "failed: fails-raises_seed-0: exit code 1: " in printed
    assert "this model does not work" in rows["fails-raises_seed-0"]["reason"]
    assert "its process was killed by SIGKILL" in rows["fails-dies_seed-0"]["reason"]


def test_a_stopped_study_saves_its_runs_and_goes_on_where_it_was(make: Callable[..., Folder]) -> None:
    base = BASE.replace("num_classes: 2", "num_classes: 2, arguments: {pause_s: 0.05}").replace("6 steps", "60 steps")
    folder = make("grid: {schedule.peak_lr: [0.01, 0.1]}\nseeds: [0]", base)
    names = ["peak_lr-0.01_seed-0", "peak_lr-0.1_seed-0"]
    process = folder.start("--jobs", "2")
    end = time.monotonic() + 120
    while not all((folder.run(name) / "metrics.jsonl").exists() and folder.losses(name) for name in names):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert "the same command goes on" in printed
    stopped_at = {name: folder.losses(name)[-1][0] for name in names}
    assert all(0 < step < 60 for step in stopped_at.values())

    code, printed = folder.study("model.arguments.pause_s=0.05", "--jobs", "2")
    assert code == 0, printed
    for name in names:
        assert len(folder.attempts(name)) == 2
        assert [step for step, _ in folder.losses(name)] == list(range(1, 61))
        assert "resumes at step" in (folder.run(name) / "output.log").read_text()


def test_successive_halving_stops_the_worst_runs_and_continues_the_best(make: Callable[..., Folder]) -> None:
    folder = make(
        "grid: {schedule.peak_lr: [0.0001, 0.001, 0.01, 0.1]}\nhalving: {at: [50 %], by: train.loss, keep: 0.5}"
    )
    code, printed = folder.study("--jobs", "1")
    assert code == 0, printed
    rows = folder.rows()
    assert sorted(row["status"] for row in rows.values()) == ["finished", "finished", "stopped", "stopped"]
    assert printed.count("stopped at 50% of the run: ") == 2
    for name, row in rows.items():
        steps = [step for step, _ in folder.losses(name)]
        assert steps == list(range(1, 7 if row["status"] == "finished" else steps[-1] + 1))
        assert row["status"] == "finished" or 3 <= steps[-1] < 6
    processes = {attempt["pid"] for name in rows for attempt in folder.attempts(name)}
    assert len(processes) == 1

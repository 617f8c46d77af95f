"""A tiny data set and config, and runs of the main job as a user starts them: as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.datasets import load_digits

from launcher.commands.prepare import write_digits

# 37 samples on 2 and 3 workers: shares that are not equal
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "place": "local",
    "duration": "20 steps",
    "model": {"name": "resnet20", "num_classes": 10},
    "data": {"resolution": 16, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 37},
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "lr_in_momentum": False},
    "schedule": {"peak_lr": 0.5, "warmup": "5 steps", "decay": "cosine"},
    "evaluate": {"every": "1000 steps"},
    "checkpoint": {"every": "1000 steps"},
    "log": {"every_steps": 1, "tensorboard": False},
    "precision": "float64",
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(load_digits().target) == 1797
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config_file(tmp_path: Path, digits: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    data = {**CONFIG["data"], "root": str(digits)}
    file.write_text(yaml.safe_dump({**CONFIG, "storage": str(tmp_path / "runs"), "data": data}))
    return file


def environment() -> dict[str, str]:
    """This process's, without what would make a run think that it is one of a group or has a cluster."""
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in gone}


@pytest.fixture
def start(config_file: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the main job with overrides; `processes` > 1 through torchrun."""

    def run(*overrides: str, processes: int = 1, **keywords: Any) -> subprocess.Popen[str]:
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launch, "-m", "launcher.train", str(config_file), *overrides]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), **keywords
        )

    return run


@pytest.fixture
def train(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run the main job to its end and return what it printed; it must exit with `code`."""

    def run(*overrides: str, code: int = 0, processes: int = 1) -> str:
        process = start(*overrides, processes=processes)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    return run


def losses(run: Path) -> dict[int, float]:
    """{step: loss} of a run, every step once."""
    from resnet_dist.telemetry.metrics_file import read_metrics

    return {r["step"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"}


def attempts(run: Path) -> list[dict[str, Any]]:
    """The lines of attempts.jsonl."""
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


@pytest.fixture
def losses_of() -> Callable[[Path], dict[int, float]]:
    return losses


@pytest.fixture
def attempts_of() -> Callable[[Path], list[dict[str, Any]]]:
    return attempts

"""The sizes `hour` and `imagenet` of `make gpu-proof`, on a CPU; tests/contracts/test_benchmarks.py has `quick`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_input import write_photos
from benchmarks.gpu_proof import PUBLISHED_SD, PUBLISHED_TOP1, RECIPE

ROOT = Path(__file__).parents[2]
TINY = (
    *("workers=1", "place=local", "resources.gpus_per_worker=0", "resources.cpus_per_worker=1", "precision=float32"),
    *("model.name=resnet8", "model.num_classes=2", "data.resolution=16", "data.num_samples=8", "batch.size=8"),
    *("batch_norm.span=8", "duration=2 steps", "schedule.warmup=1 step", "log.tensorboard=false"),
)


def proof(folder: Path, *arguments: str, code: int | None = 0) -> tuple[dict[str, Any], str]:
    """The content of the result file, and the report."""
    command = [sys.executable, "-m", "benchmarks.gpu_proof", *arguments, "--device", "cpu", "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    [file] = folder.glob(f"*-cpu-{arguments[0]}.json")
    report = file.with_suffix(".md").read_text()
    assert report in done.stdout
    return json.loads(file.read_text()), report


def reached(content: Mapping[str, Any]) -> dict[str, bool | None]:
    return {line["what"]: line["reached"] for line in content["checks"]}


def test_imagenet_trains_the_recipe_resumes_it_and_records_its_hashes(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    for split in ("train", "val"):
        write_photos(data, 8, split)
    size = ("imagenet", "--data", str(data), "--storage", str(tmp_path / "runs"))
    content, report = proof(tmp_path, *size, *TINY)
    assert reached(content) == {"the run": True, "top-1": None, "speed": None}  # another recipe is not judged
    run = tmp_path / "runs" / "nvidia-convnets-2048"
    config = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    weights = hashlib.sha256((run / "checkpoints" / "step-00000002" / "model.safetensors").read_bytes()).hexdigest()
    state = json.loads((run / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert content["hashes"]["config"] == config
    assert content["hashes"]["weights of step 2"] == weights
    assert content["hashes"]["index of the training images (names, labels, sizes)"] == state["data"]
    assert content["runs"]["nvidia-convnets-2048"]["overrides"] == list(TINY)
    assert f"SHA-256 of the weights of step 2: `{weights}`" in report
    longer = [key.replace("duration=2 steps", "duration=3 steps") for key in TINY]
    content, _ = proof(tmp_path, *size, *longer)
    assert content["runs"]["nvidia-convnets-2048"]["step"] == 3
    assert content["runs"]["nvidia-convnets-2048"]["attempts"] == 2


def test_a_run_that_fails_is_recorded_as_missed(tmp_path: Path) -> None:
    size = ("imagenet", "--data", str(tmp_path / "nothing"), "--storage", str(tmp_path / "runs"))
    content, _ = proof(tmp_path, *size, *TINY, code=1)
    assert reached(content)["the run"] is False


def test_the_accuracy_to_reach_is_that_of_the_recipe() -> None:
    assert f"Expect  {PUBLISHED_TOP1} ± {PUBLISHED_SD} % top-1" in RECIPE.read_text()


@pytest.mark.alone
def test_the_hour_checks_the_machine_trains_every_way_and_injects_faults(tmp_path: Path) -> None:
    for package in ("deepspeed", "nvidia.dali"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    steps = [word for name in ("doctor", "runs", "sections", "soak") for word in ("--only", name)]
    content, report = proof(tmp_path, "hour", *steps, code=None)  # goals of the sections are speeds: load changes them
    missed = [what for what, came in reached(content).items() if came is False and " / " not in what]
    assert missed == []
    assert list(content["runs"]) == ["local", "zero-1", "zero-2", "CPU decoder", "DALI"]
    expected = {"launcher doctor", "run zero-2", "loss of the first step, dali and local", "weights after the faults"}
    assert expected <= reached(content).keys()
    assert content["not_run"] == {"run compiled": "no GPU", "run CUDA graph": "no GPU"}
    assert "## A training step" in report
    assert "| zero-1 (engine.name=zero, engine.stage=1)" in report


@pytest.mark.ray
def test_the_hour_compares_the_weights_of_ray_with_those_of_the_local_supervisor(tmp_path: Path) -> None:
    content, _ = proof(tmp_path, "hour", "--only", "ray")
    assert reached(content)["weights through Ray and by the local supervisor"] is True

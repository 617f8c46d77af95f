"""Real trainings under a real SLURM: two nodes, through Ray and through torchrun, with the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.profile import SlurmProfile
from cluster.slurm.script import Launcher, ray_socket, render
from cluster.spec import RunSpec
from launcher.config import load as configs
from launcher.prepare.digits import write_digits
from resnet_dist.telemetry.metrics_file import read_metrics

pytestmark = pytest.mark.lab

NUM_STEPS = 40
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "one-process",
    "place": "local",
    "workers": 2,
    "duration": f"{NUM_STEPS} steps",
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


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    data = {**CONFIG["data"], "root": str(write_digits(folder / "digits"))}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "storage": str(folder / "runs"), "data": data}))
    return folder / "tiny.yaml"


def losses(run: Path) -> dict[int, float]:
    """{step: loss}; a step that was trained twice must have had the same loss both times."""
    found: dict[int, float] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        if record["kind"] == "train":
            assert found.setdefault(record["step"], record["loss"]) == record["loss"]
    return found


@pytest.fixture(scope="module")
def expected(config_file: Path) -> dict[int, float]:
    """{step: loss} of the same run in one process, without SLURM."""
    command = [sys.executable, "-m", "launcher.train", str(config_file)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return losses(config_file.parent / "runs" / "one-process")


@pytest.fixture
def script(config_file: Path, scratch: Path) -> Callable[..., str]:
    def make(name: str, launcher: Launcher) -> str:
        config = configs.load(config_file, [f"name={name}", "place=auto"])
        spec = RunSpec(
            name=name,
            config=configs.to_yaml(config),
            storage=config.storage,
            least_workers=2,
            most_workers=2,
            nodes=2,
            cpus_per_worker=1,
        )
        environment = {"OMP_NUM_THREADS": "1"}
        return render(spec, SlurmProfile(venv=sys.prefix, scratch=str(scratch), environment=environment), launcher)

    return make


def assert_same(found: dict[int, float], expected: dict[int, float]) -> None:
    """Two workers have the losses of one, but for the order of summation."""
    assert sorted(found) == sorted(expected) == list(range(1, NUM_STEPS + 1))
    gaps = [abs(found[step] - loss) / abs(loss) for step, loss in expected.items()]
    assert gaps[0] < 1e-12
    assert 0 < max(gaps) < 1e-9


def test_torchrun_on_two_nodes_has_the_losses_of_one_process(
    slurm: Any, script: Callable[..., str], config_file: Path, expected: dict[int, float]
) -> None:
    job = slurm.submit(script("torchrun", "torchrun"))
    assert slurm.wait(job, timeout_s=240)["ExitCode"] == "0:0", slurm.output(job)
    assert_same(losses(config_file.parent / "runs" / "torchrun"), expected)
    assert slurm.leftovers(job) == []


def test_ray_on_two_nodes_saves_at_a_notice_comes_back_and_has_the_losses_of_one_process(
    slurm: Any, script: Callable[..., str], config_file: Path, expected: dict[int, float]
) -> None:
    run = config_file.parent / "runs" / "ray"
    job = slurm.submit(script("ray", "ray"))
    deadline = time.monotonic() + 180
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < 3:
        assert time.monotonic() < deadline, slurm.output(job)
        time.sleep(0.1)
    sockets = (
        slurm.hosts[slurm.nodes[0]].run("find", str(slurm.scratch), "-type", "s", "-name", "plasma_store*").split()
    )
    pid = sockets[0].partition("/sockets/")[0].rpartition("_")[2]
    assert [len(socket) for socket in sockets] == [len(ray_socket(str(slurm.scratch), job, 0, pid))]
    slurm("scancel", "--signal=USR2", "--batch", job)
    ended = slurm.wait(job, timeout_s=300)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "1"), slurm.output(job)
    assert_same(losses(run), expected)
    attempts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    first, second = (line for line in attempts if line["event"] == "ended")
    assert (first["exit_code"], second["exit_code"]) == (75, 0)
    assert 3 <= first["last_step"] < NUM_STEPS
    assert slurm.leftovers(job) == []

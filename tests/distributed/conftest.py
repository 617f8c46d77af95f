"""A tiny data set and config, and runs of the main job as a user starts them: as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from launcher.prepare.digits import write_digits
from launcher.train import main
from resnet_dist.telemetry.metrics_file import read_metrics
from tests.distributed.fault_runs import FaultRun

GONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")

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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let torch compute in one thread, as the workers do: two test processes may share two CPUs."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _ray_is_installed(request: pytest.FixtureRequest) -> None:
    """Skip what is marked `ray` where there is none."""
    if request.node.get_closest_marker("ray") is not None:
        pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(load_digits().target) == 1797
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def write_config(folder: Path, digits: Path) -> Path:
    """Write the config to a file of `folder`, where its runs will be, too."""
    file = folder / "tiny.yaml"
    data = {**CONFIG["data"], "root": str(digits)}
    file.write_text(yaml.safe_dump({**CONFIG, "storage": str(folder / "runs"), "data": data}))
    return file


@pytest.fixture
def config_file(tmp_path: Path, digits: Path) -> Path:
    return write_config(tmp_path, digits)


def environment() -> dict[str, str]:
    """This process's, without what would make a run think that it is one of a group or has a cluster."""
    return {name: value for name, value in os.environ.items() if name not in GONE}


def start_job(config_file: Path, *overrides: str, processes: int = 1, **keywords: Any) -> subprocess.Popen[str]:
    """Start the main job with overrides; `processes` > 1 through torchrun."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launch, "-m", "launcher.train", str(config_file), *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), **keywords
    )


@pytest.fixture
def start(config_file: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the main job with overrides, as `start_job` does."""
    return partial(start_job, config_file)


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The run directory of the config, trained to its end in one process: what other runs are compared with."""
    file = write_config(tmp_path_factory.mktemp("one-process"), digits)
    process = start_job(file)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return file.parent / "runs" / "tiny"


@pytest.fixture
def train_here(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the main job in this process: no interpreter starts, and nothing restarts it after a failure."""
    for name in GONE:
        monkeypatch.delenv(name, raising=False)

    def run(*overrides: str, code: int = 0) -> str:
        found = main([str(config_file), "faults.max_failures=0", *overrides])
        printed = "".join(capfd.readouterr())
        assert found == code, printed
        return printed

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


@pytest.fixture
def fault_run(tmp_path: Path, digits: Path) -> Iterator[Callable[..., FaultRun]]:
    """Make runs that a test may strike; what is still running is killed after it."""
    made: list[FaultRun] = []

    def make(root: Path = digits, **more: Any) -> FaultRun:
        made.append(FaultRun(tmp_path, root, **more))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> FaultRun:
    """The run that `fault_run` makes, left alone."""
    run = FaultRun(tmp_path_factory.mktemp("undisturbed"), digits)
    run.start()
    run.end()
    return run


def losses(run: Path) -> dict[int, float]:
    """{step: loss} of a run, every step once."""
    return {r["step"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"}


def attempts(run: Path) -> list[dict[str, Any]]:
    """The lines of attempts.jsonl."""
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


def _assert_one_curve(run: Path, one_process: Path) -> None:
    """A run on workers has the losses of one process, but for the order of summation: it was not the same run."""
    found, expected = losses(run), losses(one_process)
    assert sorted(found) == sorted(expected) == list(range(1, 21))
    gaps = [abs(found[step] - loss) / abs(loss) for step, loss in expected.items()]
    print(f"step 1 {gaps[0]:.1e}, worst {max(gaps):.1e}")
    assert gaps[0] < 1e-12
    assert 0 < max(gaps) < 1e-9


@pytest.fixture
def assert_one_curve(one_process: Path) -> Callable[[Path], None]:
    """Compare a run with the one process."""
    return partial(_assert_one_curve, one_process=one_process)


@pytest.fixture
def losses_of() -> Callable[[Path], dict[int, float]]:
    return losses


@pytest.fixture
def attempts_of() -> Callable[[Path], list[dict[str, Any]]]:
    return attempts

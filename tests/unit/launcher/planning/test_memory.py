"""The memory of a worker: the estimate, beside what earlier runs used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.planning import memory
from launcher.planning.memory import Estimate, Measured
from launcher.run.directory import RunDirectory

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")
GIB = 2**30


def config(storage: Path, *overrides: str) -> RunConfig:
    return configs.load(CONFIG, [f"storage={storage}", *overrides])


def record(storage: Path, name: str, *overrides: str, **memory_bytes: int) -> None:
    """A finished run that used this memory."""
    run = RunDirectory(storage, name)
    run.create()
    run.write_config(configs.to_yaml(config(storage, f"name={name}", *overrides)))
    run.metrics.write_text(json.dumps({"kind": "train", "step": 1, **memory_bytes}) + "\n")
    run.mark_finished({"top1": 0.5})


def test_the_estimate_is_of_the_worker_with_the_most_images(tmp_path: Path) -> None:
    found = memory.estimate(config(tmp_path, "workers=24"))  # 342 or 341 of 8,192
    assert found is not None
    assert found.num_samples == 342
    assert found.total == found.static + 342 * found.sample
    assert memory.estimate(config(tmp_path, "model={name: 'package.module:function'}")) is None


def test_a_run_of_the_same_configuration_with_another_seed_is_a_measurement(tmp_path: Path) -> None:
    record(tmp_path, "other", "workers=32", gpu_memory_bytes=9 * GIB)
    assert memory.measured(config(tmp_path)) is None
    record(tmp_path, "same", "seed=3", "duration=90 epochs", gpu_memory_bytes=7 * GIB)
    assert memory.measured(config(tmp_path)) == Measured(run="same", gpu=7 * GIB, host=None)


def test_the_run_itself_comes_first(tmp_path: Path) -> None:
    record(tmp_path, "same", gpu_memory_bytes=7 * GIB)
    record(tmp_path, "rn50-8node", gpu_memory_bytes=8 * GIB)
    found = memory.measured(config(tmp_path))
    assert found is not None
    assert found.run == "rn50-8node"


@pytest.mark.parametrize(("gpu", "is_off"), [(100, False), (119, False), (130, True), (84, False), (80, True)])
def test_a_fifth_is_too_much(gpu: int, is_off: bool) -> None:
    estimate = Estimate(static=50, sample=5, num_samples=10)
    assert memory.differs(estimate, Measured(run="run", gpu=gpu, host=None)) is is_off


def test_the_memory_of_a_process_is_not_compared() -> None:
    assert not memory.differs(Estimate(static=1, sample=1, num_samples=1), Measured(run="run", gpu=None, host=GIB))


@pytest.mark.parametrize(
    ("used", "said", "warns"),
    [
        (
            {"gpu_memory_bytes": 7 * GIB},
            "measured 7.0 GiB of its GPU by rank 0 in same: the estimate is 7% lower",
            False,
        ),
        ({"gpu_memory_bytes": 12 * GIB}, "measured 12.0 GiB of its GPU by rank 0 in same: the estimate is 45% l", True),
        ({"memory_bytes": GIB}, "measured 1.0 GiB by the whole process of rank 0 in same, with PyTorch itself", False),
    ],
)
def test_the_plan_shows_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], used: dict[str, int], said: str, warns: bool
) -> None:
    record(tmp_path, "same", **used)
    assert cli.main(["plan", CONFIG, f"storage={tmp_path}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert said in text
    assert ("trust the measurement" in text.partition(" Result ")[0]) is warns

"""What earlier runs say about the accuracy: MLPerf's reference runs, and own runs with other seeds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.planning import accuracy
from launcher.planning.accuracy import Chance
from launcher.run.directory import RunDirectory

CONFIGS = Path(__file__).parents[4] / "configs"


def config(*overrides: str, path: str = "rn50_8node.yaml") -> RunConfig:
    return configs.load(CONFIGS / path, overrides)


@pytest.mark.parametrize(
    ("path", "num"),  # runs in MLPerf's rcps_resnet.json
    [("rn50_8node.yaml", 10), ("recipes/mlperf_lars_32768.yaml", 10), ("recipes/mlperf_lars_65536.yaml", 10)],
)
def test_all_reference_runs_reach_the_target_within_the_published_epochs(path: str, num: int) -> None:
    found = accuracy.reference_chance(config(path=path))
    assert found is not None
    assert (found.target, found.reached, found.num) == (0.759, num, num)
    assert "Google" in found.source


def test_the_other_lars_has_the_runs_of_the_other_origin() -> None:
    found = accuracy.reference_chance(
        config(
            "optimizer={name: lars, momentum: 0.951807, weight_decay: 1e-4, lr_in_momentum: false}",
            "schedule={peak_lr: 24.699, warmup: 31 epochs, decay: polynomial, end_lr: 1e-4}",
            *("batch.size=67840", "batch_norm.span=424", "duration=1719 steps", "workers=64"),
        )
    )
    assert found is not None
    assert (found.reached, found.num) == (28, 28)


@pytest.mark.parametrize(
    "override",
    [
        "batch.size=16384",
        "schedule.peak_lr=16",
        "duration=40 epochs",
        "optimizer.weight_decay=1e-4",
        "data.resolution=192",
        "data.subset=0.5",
        "regularization.mixup=0.2",
        "model.name=resnet101",
        "schedule.power=1",
        "batch_norm.span=128",
        "ema.decay=0.999",
    ],
)
def test_another_recipe_has_no_reference_runs(override: str) -> None:
    assert accuracy.reference_chance(config(override)) is None


@pytest.mark.parametrize(
    "override", ["seed=7", "precision=float32", "data.decoder=torchvision", "duration=44.1 epochs"]
)
def test_the_seed_and_how_it_is_computed_are_not_another_recipe(override: str) -> None:
    assert accuracy.reference_chance(config(override)) is not None


def test_a_published_accuracy_without_its_spread_is_no_probability() -> None:
    assert accuracy.reference_chance(config(path="recipes/goyal2017_sgd_8192.yaml")) is None


@pytest.mark.parametrize(("reached", "num"), [(10, 10), (9, 10), (0, 3), (17, 28), (1, 1)])
def test_the_interval_is_wilsons(reached: int, num: int) -> None:
    found = Chance(target=0.5, reached=reached, num=num, source="").interval
    wilson = stats.binomtest(reached, num).proportion_ci(0.8, method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))
    assert found.low <= found.median == reached / num <= found.high


def finished(storage: Path, name: str, top1: float | None, *overrides: str, **facts: Any) -> RunDirectory:
    """A finished run with the recipe of configs/digits_cpu.yaml."""
    run = RunDirectory(storage, name)
    run.create()
    of_run = config(f"name={name}", f"storage={storage}", *overrides, path="digits_cpu.yaml")
    run.write_config(configs.to_yaml(of_run))
    run.mark_finished({"top1": top1, "duration": str(of_run.duration), **facts})
    return run


def own(storage: Path, *overrides: str) -> RunConfig:
    return config("name=next", f"storage={storage}", *overrides, path="digits_cpu.yaml")


def test_own_runs_with_other_seeds_give_students_prediction_interval(tmp_path: Path) -> None:
    values = [0.981, 0.985, 0.99]
    for seed, top1 in enumerate(values):
        finished(tmp_path, f"run{seed}", top1, f"seed={seed}")
    interval = accuracy.expected(own(tmp_path, "seed=9", "workers=1", "data.prefetch=4", "evaluate.every=2 epochs"))
    assert interval is not None
    mean, deviation = sum(values) / 3, math.sqrt(sum((value - sum(values) / 3) ** 2 for value in values) / 2)
    half = stats.t.ppf(0.9, 2) * deviation * math.sqrt(1 + 1 / 3)
    assert interval.median == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - half)
    assert interval.high == pytest.approx(min(1.0, mean + half))


def test_another_recipe_other_images_and_the_run_itself_are_not_counted(tmp_path: Path) -> None:
    finished(tmp_path, "one", 0.98)
    finished(tmp_path, "lr", 0.5, "schedule.base_lr=0.2", "seed=1")
    finished(tmp_path, "images", 0.5, "data.root=/elsewhere", "seed=2")
    finished(tmp_path, "longer", 0.5, "duration=30 epochs", "seed=3")
    finished(tmp_path, "same-seed", 0.97)  # the same run once more
    finished(tmp_path, "next", 0.1, "seed=4")
    finished(tmp_path, "no-number", None, "seed=5")
    RunDirectory(tmp_path, "unfinished").create()
    found = accuracy.own_runs(own(tmp_path))
    assert found is not None
    assert len(found.top1) == 1
    assert found.interval() is None
    assert accuracy.expected(own(tmp_path)) is None


def test_a_damaged_run_is_left_out(tmp_path: Path) -> None:
    finished(tmp_path, "whole", 0.98)
    finished(tmp_path, "config", 0.5, "seed=1").config.write_text("name: [\n")
    finished(tmp_path, "summary", 0.5, "seed=2").finished_file.write_text("{")
    finished(tmp_path, "text", 0.5, "seed=3").config.write_bytes(b"\xff\x00")
    (tmp_path / "file").touch()
    found = accuracy.own_runs(own(tmp_path))
    assert found is not None
    assert found.names == ("whole",)


def test_own_runs_count_those_that_reach_a_target(tmp_path: Path) -> None:
    for seed, top1 in enumerate([0.97, 0.98, 0.99]):
        finished(tmp_path, f"run{seed}", top1, f"seed={seed}")
    found = accuracy.own_runs(own(tmp_path))
    assert found is not None
    chance = found.chance(0.98)
    assert (chance.reached, chance.num) == (2, 3)


def test_no_storage_is_no_evidence(tmp_path: Path) -> None:
    assert accuracy.own_runs(own(tmp_path / "none")) is None


def test_no_torch_is_needed() -> None:
    code = "import launcher.planning.accuracy, launcher.commands.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

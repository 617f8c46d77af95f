"""How a config compares with the published runs of its batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.planning.published_recipe import compared

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.mark.parametrize(
    "path",
    [
        "rn50_8node.yaml",
        "recipes/goyal2017_sgd_8192.yaml",
        "recipes/mlperf_lars_32768.yaml",
        "recipes/mlperf_lars_65536.yaml",
        "recipes/nado2021_nesterov_32768.yaml",
    ],
)
def test_the_recipes_of_the_project_are_those_that_they_name(path: str) -> None:
    found = compared(configs.load(CONFIGS / path))
    assert found is not None
    assert found.is_published
    assert {"duration", "schedule.peak_lr", "schedule.warmup", "optimizer.weight_decay"} <= found.same


@pytest.mark.parametrize(
    ("override", "other"),
    [
        ("duration=43 epochs", "duration"),
        ("schedule.warmup=6 epochs", "schedule.warmup"),
        ("optimizer.lr_factors={fc: 10}", "optimizer.lr_factors.fc"),
        ("evaluate.resolution=256", "evaluate.resolution"),
        ("data.augmentation.name=trivialaugment", "data.augmentation.name"),
        ("optimizer.trust_coefficient=0.01", "optimizer.trust_coefficient"),
    ],
)
def test_the_keys_that_differ_are_named(override: str, other: str) -> None:
    found = compared(configs.load(CONFIGS / "rn50_8node.yaml", [override]))
    assert found is not None
    assert found.other == {other}
    assert not found.is_published


def test_what_means_the_same_is_the_same() -> None:
    schedule = "schedule={scaling: table, warmup: 782 steps, decay: polynomial, end_lr: 1e-4}"  # 5 epochs; power 2
    optimizer = "optimizer={name: lars, weight_decay: 2e-4}"  # trust coefficient and lr_in_momentum by default
    found = compared(configs.load(CONFIGS / "rn50_8node.yaml", [schedule, optimizer, "evaluate.resolution=224"]))
    assert found is not None
    assert found.is_published


def test_numbers_between_two_runs_are_not_published() -> None:
    found = compared(configs.load(CONFIGS / "rn50_8node.yaml", ["batch.size=16384"]))
    assert found is not None
    assert not found.is_published


@pytest.mark.parametrize("path", ["digits_cpu.yaml", "recipes/timm_a3_2048.yaml", "recipes/he2015_cifar10.yaml"])
def test_other_settings_have_no_published_runs(path: str) -> None:
    assert compared(configs.load(CONFIGS / path)) is None

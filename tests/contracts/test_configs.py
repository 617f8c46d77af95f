"""Every file in configs/ loads, explains how to run it, and means the same when it is written out resolved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.commands.demo import shipped_config
from launcher.config import load as config
from launcher.config.rules import problems
from launcher.config.schema import Workers
from resnet_dist.recipe.durations import Duration

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def by_name(path: Path) -> str:
    return path.name


def opening_comment(path: Path) -> str:
    """The comment lines before the first key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:length])


def test_there_is_a_config_for_a_laptop_and_one_for_a_cluster() -> None:
    assert {"digits_cpu.yaml", "rn50_8node.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_a_config_loads_without_a_problem(path: Path) -> None:
    assert problems(config.load(path)) == []


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_a_config_starts_with_what_where_how_and_what_to_expect(path: Path) -> None:
    comment = opening_comment(path)
    for word in ("What", "Where", "Run", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", comment, re.MULTILINE), f"{path.name} does not say: {word}"
    assert f"python -m launcher.train configs/{path.name}" in comment


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_a_config_has_its_own_run_directory(path: Path) -> None:
    runs = [(run.storage, run.name) for run in map(config.load, CONFIGS)]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_a_resolved_config_is_the_same_run_from_any_folder(path: Path, tmp_path: Path) -> None:
    run = config.load(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml(run), encoding="utf-8")
    assert config.load(resolved) == run


def test_the_eight_node_config_is_the_published_reference() -> None:
    run = config.load(FOLDER / "rn50_8node.yaml")
    assert (run.workers, run.cluster.nodes, run.resources.gpus_per_worker) == (Workers(64, 64), 8, 1)
    assert (run.batch.size, run.batch_norm.span, run.duration) == (8192, 64, Duration.parse("44 epochs"))
    optimizer, schedule = run.optimizer, run.schedule
    assert (optimizer.name, optimizer.lr_in_momentum, optimizer.trust_coefficient) == ("lars", True, 0.001)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 2e-4)
    assert (schedule.peak_lr, schedule.warmup) == (17.0, Duration.parse("5 epochs"))
    assert (schedule.decay, schedule.power, schedule.end_lr) == ("polynomial", 2.0, 1e-4)
    assert (run.regularization.label_smoothing, run.precision) == (0.1, "bfloat16")


def test_the_config_for_a_laptop_needs_no_gpu() -> None:
    run = config.load(FOLDER / "digits_cpu.yaml")
    assert (run.resources.gpus_per_worker, run.cluster.nodes, run.place) == (0, 1, "auto")


def test_the_demo_finds_its_config() -> None:
    assert shipped_config("digits_cpu.yaml").is_file()

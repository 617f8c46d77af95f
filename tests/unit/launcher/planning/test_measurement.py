"""What is measured of a recipe on this machine, and in which processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lars_config import config

from launcher.config.schema import Resources
from launcher.errors import UsageError
from launcher.planning import measurement as measurements
from launcher.planning.measurement import Kind, Measurement, recipe_of_one_worker, workers_here
from launcher.planning.measurement_worker import measure
from resnet_dist.build import Worker
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    Recipe,
)


@pytest.mark.parametrize(
    ("size", "parts", "workers", "span", "expected_size", "expected_span"),
    [
        (8192, 1, 64, 64, 128, 64),
        (8192, 2, 64, 64, 128, 64),
        (8192, 1, 64, 256, 128, "worker"),
        (37, 1, 3, "global", 13, "worker"),
        (37, 1, 1, "global", 37, "global"),
        (8192, 1, 128, "auto", 64, 64),
        (8192, 1, 256, "auto", 32, "worker"),  # the batch's span is 64: auto would choose 32 for a batch of 32
    ],
)
def test_the_per_worker_batch_as_a_recipe(
    tmp_path: Path, size: int, parts: int, workers: int, span: Any, expected_size: int, expected_span: Any
) -> None:
    recipe = config(
        tmp_path, batch=BatchRecipe(size=size, num_micro_batches=parts), batch_norm=BatchNormRecipe(span=span)
    ).recipe()
    single = recipe_of_one_worker(recipe, workers)
    assert (single.batch.size, single.batch.parts, single.batch_norm.span) == (expected_size, parts, expected_span)


def test_a_machine_too_small_for_all_workers_runs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements.os, "cpu_count", lambda: 2)
    assert workers_here(config(tmp_path, workers=2)) == (2, "")
    assert workers_here(config(tmp_path, workers=3)) == (1, ": this machine has 2 CPUs")
    on_gpus = replace(config(tmp_path, workers=8), resources=Resources(gpus_per_worker=1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert workers_here(on_gpus) == (1, ": this machine has 1 GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="this machine has none"):
        workers_here(on_gpus)


@pytest.fixture
def recipe(tmp_path: Path, write_images: Callable[[Path], Path]) -> Recipe:
    return config(tmp_path, write_images(tmp_path / "images"), workers=1).recipe()


@pytest.mark.parametrize("kind", ["whole", "loader", "synthetic"])
def test_a_measurement_reads_the_runs_own_images_and_leaves_nothing(tmp_path: Path, recipe: Recipe, kind: Kind) -> None:
    threads = torch.get_num_threads()
    measurement = Measurement(kind, recipe, workers=1, steps=2, num_threads=1, on_gpu=False)
    found = measure(measurement, Worker(0, 1, torch.device("cpu"), 1), tmp_path / "scratch")
    torch.set_num_threads(threads)
    assert found["images_per_s"] > 0
    assert bool(found["bottleneck"]) == (kind == "whole")
    left = {path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()}
    assert left == {"train.safetensors", "val.safetensors"}
    assert not (tmp_path / "runs").exists()


def test_a_measurement_ends_with_its_time_and_evaluates(tmp_path: Path, recipe: Recipe) -> None:
    threads = torch.get_num_threads()
    measurement = Measurement("whole", recipe, workers=1, steps=10**6, num_threads=1, on_gpu=False, seconds=0.5)
    started = time.time()
    found = measure(measurement, Worker(0, 1, torch.device("cpu"), 1), tmp_path / "scratch", started)
    torch.set_num_threads(threads)
    assert len(found["step_times_s"]) >= 2
    assert min(found["step_times_s"]) > 0
    assert 0 < found["start_s"] < time.time() - started
    assert found["evaluation_s"] > 0
    assert (found["num_samples"] > 0, found["num_val"] > 0) == (True, True)

"""`launcher plan --ablate`: what is measured, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.commands.ablate import changes, lines
from launcher.config.schema import Resources, RunConfig, Workers
from launcher.errors import UsageError
from launcher.planning import measurement as measurements
from launcher.planning.measurement import Kind, Measurement, Speed, recipe_of_one_worker, workers_here
from launcher.planning.measurement_worker import measure
from resnet_dist.build import Worker
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    SpeedRecipe,
)


def config(tmp_path: Path, root: Path | None = None, workers: int = 2, **changes: Any) -> RunConfig:
    whole = RunConfig(
        schema=1,
        name="some",
        storage=str(tmp_path / "runs"),
        workers=Workers(workers, workers),
        duration=Duration(Fraction(2), "epochs"),
        model=ModelRecipe(name="resnet20", num_classes=2),
        data=DataRecipe(root=str(root or tmp_path), resolution=8),
        batch=BatchRecipe(size=4),
        optimizer=OptimizerRecipe(name="lars"),
        schedule=ScheduleRecipe(peak_lr=1.0),
    )
    return replace(whole, **changes)


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


def test_every_speed_key_is_given_each_value_that_it_does_not_have() -> None:
    found = list(changes(SpeedRecipe()))
    assert ("channels_last", False) in found
    assert ("compile", True) in found
    assert [value for key, value in found if key == "sgd_kernel"] == ["foreach", "fused", "loop"]
    without_loop = [value for key, value in changes(SpeedRecipe(sgd_kernel="loop")) if key == "sgd_kernel"]
    assert without_loop == ["foreach", "fused"]


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


def test_the_slowest_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"whole": 90.0, "loader": 100.0, "synthetic": 200.0}

    def measure(folder: Path, measurement: Measurement) -> Speed:
        if measurement.recipe.speed.compile:
            return Speed(None, "failed: no compiler")
        speed = 150.0 if measurement.workers == 1 else speeds[measurement.kind]
        return Speed(speed, "bound by input" if measurement.kind == "whole" else "")

    monkeypatch.setattr(measurements.os, "cpu_count", lambda: 2)
    text = "\n".join(lines(config(tmp_path), 5, measure))
    assert "5 steps each, on 2 of 2 workers" in text
    assert "2 x one worker        300.0 images/s" in text
    assert "the slowest part is loader; the whole reaches 90% of it" in text
    assert "bound by input" in text
    assert "measured twice, 0.0% apart" in text
    assert "channels_last: false          200.0 images/s, 1.000 times" in text
    assert "failed: no compiler" in text
    assert "cuda_graph: true                  - has no effect on a CPU" in text
    assert "speed.sgd_kernel: found loop, which has no effect here" in text  # LARS has no other kernels


def test_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps 0: Allowed: a number from 1 up"):
        list(lines(config(tmp_path), steps=0))


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

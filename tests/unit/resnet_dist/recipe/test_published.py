"""The table of published runs: its numbers, what is interpolated, and what has no answer."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.errors import RecipeError
from resnet_dist.recipe import published as table
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.published import NUM_SAMPLES, Number, Origin, Published, origins
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, ScheduleRecipe

GOOGLE = OptimizerRecipe(name="lars", lr_in_momentum=True)
NVIDIA = OptimizerRecipe(name="lars", lr_in_momentum=False)
SGD = OptimizerRecipe(name="sgd", nesterov=True)

ORIGINS = {origin.name: origin for origin in origins()}
RECIPE = Recipe(
    data=DataRecipe(root=""),
    batch=BatchRecipe(size=8192),
    duration=Duration.parse("90 epochs"),
    schedule=ScheduleRecipe(scaling="table"),
    model=ModelRecipe(name="resnet50"),
)


def published(optimizer: OptimizerRecipe, batch: int) -> Published:
    return table.published(dataclasses.replace(RECIPE, optimizer=optimizer), batch)


# MLPerf's rows, written down independently: origin, batch, peak LR, warm-up epochs, weight decay, momentum, steps of
# decay, span, epochs to 75.9 % (rounded)
MLPERF = """
    NVIDIA  1632   7.4     2   5e-5    0.9       27476  204  35.0
    NVIDIA  3264   10.5    2   5e-5    0.9       14523  204  35.2
    Google  4096   10      5   2e-4    0.9       13137  64   39.9
    Google  8192   17      5   2e-4    0.9       6095   64   41.9
    NVIDIA  13056  12.8    9   2.5e-5  0.9       4710   204  45.5
    Google  32768  21.2    16  2.5e-5  0.94      2267   128  56.0
    NVIDIA  49152  19.405  24  1e-4    0.951807  1846   256  68.0
    NVIDIA  58880  23.246  29  1e-4    0.951807  1785   230  80.0
    Google  65536  24.699  31  1e-4    0.951807  1133   128  84.5
    NVIDIA  67840  24.699  31  1e-4    0.951807  1133   424  85.8
"""


def test_the_lars_rows_are_those_of_mlperf() -> None:
    rows = [line.split() for line in MLPERF.strip().splitlines()]
    assert len(rows) == len(ORIGINS["Google"].runs) + len(ORIGINS["NVIDIA"].runs)
    for origin, batch, *numbers in rows:
        (run,) = [run for run in ORIGINS[origin].runs if run.batch == int(batch)]
        peak_lr, warmup, weight_decay, momentum, after, span, epochs = map(float, numbers)
        assert (run.peak_lr, run.weight_decay, run.momentum) == (peak_lr, weight_decay, momentum)
        assert (run.warmup, run.batch_norm_span) == (Duration.parse(f"{warmup:g} epochs"), span)
        assert run.duration.count - math.ceil(warmup * NUM_SAMPLES / run.batch) == after
        assert run.epochs_to_target == pytest.approx(epochs, abs=0.06)


@pytest.mark.parametrize("origin", origins(), ids=lambda origin: origin.name)
def test_runs_ascend_and_a_source_is_named(origin: Origin) -> None:
    batches = [run.batch for run in origin.runs]
    assert batches == sorted(set(batches))
    assert "MLPerf" in origin.source or "arXiv" in origin.source
    assert all((run.epochs_to_target is None) != (run.top1 is None) for run in origin.runs)


@pytest.mark.parametrize(
    ("optimizer", "batch", "peak_lr"),
    [(GOOGLE, 8192, 17.0), (GOOGLE, 65536, 24.699), (NVIDIA, 1632, 7.4), (NVIDIA, 67840, 24.699), (SGD, 32768, 7.05)],
)
def test_a_published_batch_has_the_published_number(optimizer: OptimizerRecipe, batch: int, peak_lr: float) -> None:
    found = published(optimizer, batch)
    assert found.exact
    assert found.number("peak_lr") == peak_lr


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [("peak_lr", 17, 21.2), ("momentum", 0.9, 0.94), ("weight_decay", 2e-4, 2.5e-5), ("warmup_epochs", 5, 16)],
)
def test_between_two_runs_numbers_are_linear_in_the_batch(name: Number, below: float, above: float) -> None:
    found = published(GOOGLE, 16384)
    assert [run.batch for run in found.runs] == [8192, 32768]
    assert found.number(name) == pytest.approx(below + (above - below) / 3, rel=1e-5)


def test_the_epochs_to_the_target_are_interpolated_as_mlperf_does() -> None:
    assert published(GOOGLE, 16384).number("epochs_to_target") == pytest.approx(41.875 + (56 - 41.875) / 3, rel=1e-5)


@pytest.mark.parametrize("batch", [256, 1000, 4096, 8192])
def test_sgd_between_the_runs_of_goyal_is_linear_scaling(batch: int) -> None:
    assert published(SGD, batch).number("peak_lr") == pytest.approx(0.1 * batch / 256, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 1631, 4095, 16384, 40000, 65536, 67840, 67841, 10**6])
@pytest.mark.parametrize("optimizer", [GOOGLE, NVIDIA, SGD], ids=["lars inside", "lars outside", "sgd"])
def test_a_number_lies_between_those_of_one_origin_or_there_is_none(optimizer: OptimizerRecipe, batch: int) -> None:
    try:
        found = published(optimizer, batch)
    except RecipeError:
        assert not any(origin.covers(batch) for origin in origins() if origin.fits(optimizer))
        return
    assert all(run in found.origin.runs for run in found.runs)
    assert found.runs[0].batch <= batch <= found.runs[-1].batch
    number = found.number("peak_lr")
    assert number is not None
    assert min(run.peak_lr for run in found.runs) <= number <= max(run.peak_lr for run in found.runs)


def refused(optimizer: OptimizerRecipe, batch: int) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        published(optimizer, batch)
    return caught.value


def test_a_batch_that_nobody_published_names_the_ranges_and_what_goes_ahead() -> None:
    error = refused(GOOGLE, 67000)
    assert "4,096 to 65,536 (Google" in error.problem
    assert "Runs to 75.9 % top-1 are published up to a batch of 67,840" in error.problem
    assert "1,632 to 67,840 (NVIDIA: lars, lr_in_momentum false)" in error.allowed
    assert "schedule.peak_lr=LR" in error.allowed
    assert "NVIDIA" not in refused(GOOGLE, 67841).allowed


@pytest.mark.parametrize("name", ["lamb", "adamw", "mine.optimizers:build"])
def test_an_optimizer_without_published_runs_is_named(name: str) -> None:
    assert f"none of {name}" in refused(OptimizerRecipe(name=name), 8192).problem


@pytest.mark.parametrize(
    ("optimizer", "batch", "found", "allowed"),
    [
        (OptimizerRecipe(name="sgd"), 1024, "optimizer.nesterov false", "optimizer.nesterov true"),
        (OptimizerRecipe(name="sgd", momentum=0.0), 1024, "optimizer.nesterov false", "optimizer.nesterov true"),
        (OptimizerRecipe(name="lars", nesterov=True), 8192, "optimizer.nesterov true", "optimizer.nesterov false"),
        (OptimizerRecipe(name="lars", trust_coefficient=0.02), 16384, "trust_coefficient 0.02", "coefficient 0.001"),
    ],
)
def test_runs_of_another_form_of_the_optimizer_give_no_number(
    optimizer: OptimizerRecipe, batch: int, found: str, allowed: str
) -> None:
    error = refused(optimizer, batch)
    assert found in error.problem
    assert allowed in error.allowed
    replaced = table.published(dataclasses.replace(RECIPE, optimizer=optimizer), batch, replaces_optimizer=True)
    assert replaced.runs[0].batch <= batch


def test_a_default_that_is_written_out_is_the_same_optimizer() -> None:
    written = OptimizerRecipe(name="lars", trust_coefficient=0.001, lr_in_momentum=True)
    assert published(written, 8192) == published(OptimizerRecipe(name="lars"), 8192)


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        (dataclasses.replace(RECIPE, model=ModelRecipe(name="resnet20")), "model.name resnet20"),
        (dataclasses.replace(RECIPE, model=ModelRecipe(name="resnet50", num_classes=10)), "model.num_classes 10"),
        (dataclasses.replace(RECIPE, data=DataRecipe(root="", num_samples=1437)), "data.num_samples 1437"),
        (dataclasses.replace(RECIPE, data=DataRecipe(root="", subset=0.5)), "data.subset 0.5"),
    ],
)
def test_other_networks_and_images_have_no_number(recipe: Recipe, found: str) -> None:
    with pytest.raises(RecipeError, match=f"found {found}. Allowed: resnet50 on ImageNet-1k"):
        table.published(dataclasses.replace(recipe, optimizer=SGD), 1024)


def test_the_default_of_lars_is_the_reference() -> None:
    assert published(OptimizerRecipe(name="lars"), 8192).origin is ORIGINS["Google"]


@pytest.mark.parametrize(("batch", "span"), [(8192, 64), (16384, 64), (30000, None), (32768, 128)])
def test_the_span_is_that_of_the_nearer_run_if_it_divides_the_batch(batch: int, span: int | None) -> None:
    assert published(GOOGLE, batch).batch_norm_span == span


def test_lengths_are_those_of_the_source() -> None:
    (run,) = published(GOOGLE, 65536).runs
    assert str(run.duration) == f"{math.ceil(31 * NUM_SAMPLES / 65536) + 1133} steps"
    assert run.warmup_epochs == 31
    assert run.duration_epochs == pytest.approx(1740 * 65536 / NUM_SAMPLES)


def test_the_table_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from resnet_dist.recipe.published import origins; origins()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_is_plain_json_with_a_source_for_each_origin() -> None:
    file = Path(__file__).parents[4] / "resnet_dist" / "recipe" / "published.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert content["num_samples"] == NUM_SAMPLES
    assert [origin["name"] for origin in content["origins"]] == list(ORIGINS)

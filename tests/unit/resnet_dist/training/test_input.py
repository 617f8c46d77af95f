"""The input of a training process: whether its GPU decodes regions, and batches without content."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from resnet_dist.data import index_image_folder
from resnet_dist.data.decoding import dali
from resnet_dist.data.decoding.region_check import warn_of
from resnet_dist.data.loader import HostBatch
from resnet_dist.data.order import order_of
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.training.device import ToDevice, Worker
from resnet_dist.training.input import blank_batch, checked_regions, training_input

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DATA = DataRecipe(root="/data", decoder="dali")
DIED = "a trial in a child process ended with SIGSEGV"


class Checked:
    """A check that has ended."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem


def worker(rank: int = 0, world_size: int = 1, device: torch.device = GPU) -> Worker:
    return Worker(rank, world_size, device, num_threads=1)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    warn_of.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize(("problem", "decodes"), [(None, True), (DIED, False)])
def test_one_worker_decodes_regions_unless_they_are_a_problem(
    problem: str | None, decodes: bool, said: pytest.LogCaptureFixture
) -> None:
    found = checked_regions(worker(), DATA, Checked(problem))  # type: ignore[arg-type]
    assert found == replace(worker(), decodes_regions=decodes)
    assert [record.getMessage().endswith(f"{DIED} (rank 0)") for record in said.records] == [True] * (not decodes)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_no_worker_decodes_regions_if_one_cannot_and_rank_0_says_so(
    rank: int, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [None, DIED, None]

    def gathered(found: list[Any], own: str | None) -> None:
        assert own == problems[rank]
        found[:] = problems

    monkeypatch.setattr(dist, "all_gather_object", gathered)
    found = checked_regions(worker(rank, 3), DATA, Checked(problems[rank]))  # type: ignore[arg-type]
    assert not found.decodes_regions
    assert [record.getMessage().endswith(f"{DIED} (rank 1)") for record in said.records] == [True] * (rank == 0)


def test_a_worker_without_dali_takes_part_in_the_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `decoder: auto`, whether DALI is installed may differ between hosts."""
    asked: list[Any] = []

    def gathered(found: list[Any], own: str | None) -> None:
        asked.append(own)

    monkeypatch.setattr(dist, "all_gather_object", gathered)
    assert checked_regions(worker(1, 2), replace(DATA, decoder="auto"), None).decodes_regions
    assert asked == [None]


def test_on_a_cpu_and_without_dali_nothing_is_exchanged() -> None:
    assert checked_regions(worker(0, 2, CPU), DATA, None).decodes_regions
    assert checked_regions(worker(0, 2), replace(DATA, decoder="torchvision"), None).decodes_regions


@pytest.mark.parametrize(
    "regularization", [RegularizationRecipe(), RegularizationRecipe(mixup=0.5, cutmix=1.0, random_erasing=0.5)]
)
def test_a_blank_batch_is_on_the_device_what_a_batch_of_training_is(
    regularization: RegularizationRecipe, tmp_path: Path, write_images: Callable[[Path], Path]
) -> None:
    """A CUDA graph is captured with one, and must fit the other: in shape, dtype and memory layout."""
    recipe = Recipe(
        data=DataRecipe(root="none", resolution=16),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("1 step"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(num_classes=3),
        regularization=regularization,
    )
    index = index_image_folder(str(write_images(tmp_path)), "train")
    layout, own = BatchLayout.of(recipe, 1), worker(device=CPU)
    order = order_of(index, recipe.data, recipe.seed)
    [batch] = training_input(recipe, own, index, order, layout, 1, ())(0)

    def facts(host: HostBatch) -> list[Any]:
        found: MicroBatch = ToDevice(recipe, CPU, training=True)(host)
        return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in (found.images, found.labels)]

    assert facts(blank_batch(recipe, 8)) == facts(batch)


@pytest.mark.skipif(not dali.is_installed(), reason="NVIDIA DALI is not installed")
def test_calls_during_training_share_one_more_pipeline(
    tmp_path: Path, write_images: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As precise batch norm calls it at each evaluation, for a few steps: DALI's pipelines take seconds to build."""
    built, defined = [], dali._defined

    def define(*arguments: Any) -> Any:
        built.append(arguments)
        return defined(*arguments)

    monkeypatch.setattr(dali, "_defined", define)
    root = str(write_images(tmp_path))
    recipe = Recipe(
        data=DataRecipe(root=root, resolution=8, decoder="dali"),
        batch=BatchRecipe(size=4),
        duration=Duration.parse("9 steps"),
        schedule=ScheduleRecipe(peak_lr=0.1),
    )
    index, layout = index_image_folder(root, "train"), BatchLayout.of(recipe, 1)
    order = order_of(index, recipe.data, recipe.seed)
    batches_from = training_input(recipe, worker(device=CPU), index, order, layout, 9, ())
    expected = [batch.images.clone() for batch in batches_from(0)]
    assert len(built) == 1
    found = []
    for step, batch in enumerate(batches_from(0), start=1):
        found.append(batch.images.clone())
        if step % 3 == 0:
            with closing(batches_from(step - 2)) as again:
                assert all(torch.equal(next(again).images, expected[number]) for number in (step - 2, step - 1))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(built) == 2

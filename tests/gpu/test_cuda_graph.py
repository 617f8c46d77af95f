"""Forward and backward pass as a CUDA graph: under DDP, beside DALI, and fed by files; the losses without it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from smooth_photos import write_photos

from benchmarks.peers import LEARNING_RATE, OurTrainer, Setting, synthetic
from resnet_dist.data import index_of
from resnet_dist.data.decoding.choice import dali_is_installed
from resnet_dist.data.loader import HostBatch
from resnet_dist.data.order import order_of
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe, Precision, Recipe, RegularizationRecipe, SpeedRecipe
from resnet_dist.training.device import ToDevice, Worker, set_up_torch
from resnet_dist.training.input import blank_batch, training_input

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
needs_dali = pytest.mark.skipif(not dali_is_installed(), reason="needs a GPU and NVIDIA DALI")

NUM_STEPS = 20
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
ROOT = Path(__file__).parents[2]


def setting(precision: Precision = "float32") -> Setting:
    return Setting(batch=16, resolution=32, model="resnet20", num_classes=10, precision=precision)


def recipe_for(own: Setting, *, graph: bool, world_size: int = 1, **changes: Any) -> Recipe:
    return own.recipe(world_size, speed=SpeedRecipe(cuda_graph=graph, cudnn_benchmark=False), **changes)


def losses(recipe: Recipe, device: torch.device, batches: Iterator[HostBatch], *, wrapped: bool = False) -> list[float]:
    """The sums of losses of `NUM_STEPS` steps on this worker. The graph is captured before the first batch is taken."""
    set_up_torch(recipe, device, num_threads=1)
    engine = OurTrainer(recipe, device, [], wrapped=wrapped).engine
    assert isinstance(engine, DdpEngine)
    to_device, found = ToDevice(recipe, device, training=True), []
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if recipe.speed.cuda_graph:
        engine.prepare(to_device(blank_batch(recipe, recipe.batch.size // world_size)))
    for batch in itertools.islice(batches, NUM_STEPS):
        found.append(engine.step([to_device(batch)], LEARNING_RATE).loss)
    assert len(found) == NUM_STEPS
    engine.release()  # a process group cannot be destroyed before
    return torch.stack(found).tolist()


# --- under DDP


def under_ddp(device: torch.device, precision: Precision, *, graph: bool) -> list[float]:
    """Losses of this process; needs a process group."""
    own = setting(precision)
    batches = synthetic(own, 4, on_device=False, rank=dist.get_rank())
    recipe = recipe_for(own, graph=graph, world_size=dist.get_world_size())
    return losses(recipe, device, itertools.cycle(batches), wrapped=True)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/nccl", rank=0, world_size=1, device_id=device)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ddp_in_a_graph_gives_the_losses_without_one(precision: Precision) -> None:
    plain, graphed = (under_ddp(torch.device("cuda", 0), precision, graph=graph) for graph in (False, True))
    np.testing.assert_allclose(graphed, plain, rtol=TOLERANCE[precision])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU for each of two processes")
def test_ddp_of_two_processes_in_a_graph_gives_the_losses_without_one(tmp_path: Path) -> None:
    found = on_two_processes(tmp_path, "nccl")
    for rank, (plain, graphed) in enumerate(found):
        np.testing.assert_allclose(graphed, plain, rtol=TOLERANCE["float32"], err_msg=f"rank {rank}")


def on_two_processes(folder: Path, backend: str) -> list[list[list[float]]]:
    """The losses of both processes, without and with a graph. Under gloo on the CPU, twice without one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, __file__, str(folder), backend]
    started = [subprocess.Popen([*command, str(rank)], env=environment, cwd=ROOT) for rank in range(2)]
    try:
        assert [process.wait(300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def main() -> None:
    """One of the two processes: FOLDER BACKEND RANK."""
    folder, backend, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    on_gpu = backend == "nccl"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    group: dict[str, Any] = {"device_id": device} if on_gpu else {}
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=2, **group)
    found = [under_ddp(device, "float32", graph=graph and on_gpu) for graph in (False, True)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


# --- fed by files


def from_files(
    folder: Path, device: torch.device, decoder: str, *, graph: bool, masks: RegularizationRecipe | None = None
) -> list[float]:
    """The losses of steps on files, which `decoder` decodes."""
    own = setting()
    data = DataRecipe(root=str(folder), resolution=own.resolution, decoder=decoder, prefetch=3)  # type: ignore[arg-type]
    recipe = recipe_for(own, graph=graph, data=data, regularization=masks or RegularizationRecipe())
    index = index_of(data, "train")
    layout, worker = BatchLayout.of(recipe, 1), Worker(0, 1, device, num_threads=2)
    order = order_of(index, data, recipe.seed)
    batches = training_input(recipe, worker, index, order, layout, NUM_STEPS, ())(0)
    found = losses(recipe, device, batches)
    batches.close()
    return found


MIXED = RegularizationRecipe(mixup=0.2, cutmix=1.0, random_erasing=0.25)


@pytest.mark.parametrize("masks", [None, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("decoder", ["torchvision", pytest.param("dali", marks=needs_dali)])
def test_files_feed_a_graph_as_they_feed_single_kernels(
    decoder: str, masks: RegularizationRecipe | None, tmp_path: Path
) -> None:
    """DALI decodes beside the replays, and each replay must wait for its own images."""
    write_photos(tmp_path)
    device = torch.device("cuda", 0)
    plain, graphed = (from_files(tmp_path, device, decoder, graph=graph, masks=masks) for graph in (False, True))
    np.testing.assert_allclose(graphed, plain, rtol=1e-4)


@needs_dali
def test_dali_and_the_decoder_on_the_cpu_train_alike(tmp_path: Path) -> None:
    write_photos(tmp_path)
    ours, dalis = (from_files(tmp_path, torch.device("cuda", 0), name, graph=False) for name in ("torchvision", "dali"))
    np.testing.assert_allclose(dalis, ours, rtol=0.02)


@needs_dali
def test_a_second_graph_is_captured_after_dali_has_worked(tmp_path: Path) -> None:
    """A worker that survives a failure builds its engine again in the same process."""
    write_photos(tmp_path)
    first, second = (from_files(tmp_path, torch.device("cuda", 0), "dali", graph=True) for _ in range(2))
    np.testing.assert_allclose(second, first, rtol=1e-4)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    own, device = setting(), torch.device("cuda", 0)
    engine = OurTrainer(recipe_for(own, graph=True), device, []).engine
    to_device = ToDevice(recipe_for(own, graph=True), device, training=True)
    [batch] = synthetic(own, 1, on_device=False)
    engine.step([to_device(batch)], LEARNING_RATE)
    [other] = synthetic(replace(own, resolution=40), 1, on_device=False)
    with pytest.raises(ValueError, match="the CUDA graph was captured for inputs of"):
        engine.step([to_device(other)], LEARNING_RATE)


if __name__ == "__main__":
    main()

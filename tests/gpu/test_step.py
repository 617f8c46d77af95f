"""A training step on a GPU: the same numbers as on a CPU, as a graph too, and no wait of the host."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.peers import OurTrainer, Setting, synthetic
from resnet_dist.data.loader import HostBatch
from resnet_dist.recipe.schema import OptimizerRecipe, Precision, Recipe, SpeedRecipe
from resnet_dist.training.device import ToDevice, set_up_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LARS = OptimizerRecipe(name="lars", momentum=0.9, weight_decay=1e-4)


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Leave torch's flags as they were found."""
    backends = torch.backends
    before = backends.cudnn.benchmark, backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    yield
    torch.cuda.set_sync_debug_mode("default")
    backends.cudnn.benchmark, backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]


def setting(precision: Precision) -> Setting:
    return Setting(batch=16, resolution=32, model="resnet20", num_classes=10, precision=precision)


def trainer(recipe: Recipe, device: torch.device, batches: list[HostBatch]) -> OurTrainer:
    set_up_torch(recipe, device, num_threads=1)
    return OurTrainer(recipe, device, batches)


def weights(trainer: OurTrainer) -> list[torch.Tensor]:
    return [value.detach().cpu() for value in trainer.engine.module.state_dict().values()]


@pytest.mark.parametrize("optimizer", [OptimizerRecipe(weight_decay=1e-4), LARS], ids=["sgd", "lars"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_a_step_gives_the_weights_that_it_gives_on_a_cpu(
    precision: Precision, tolerance: float, optimizer: OptimizerRecipe
) -> None:
    recipe = setting(precision).recipe(optimizer=optimizer)
    batches = synthetic(setting(precision))
    found = {}
    for device in (CPU, GPU):
        run = trainer(recipe, device, batches)
        run(2)
        found[device.type] = weights(run)
    for ours, expected in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_computes_what_single_kernels_compute(precision: Precision) -> None:
    batches = synthetic(setting(precision))
    found = {}
    for graph in (False, True):
        recipe = setting(precision).recipe(speed=SpeedRecipe(cuda_graph=graph, cudnn_benchmark=False))
        run = trainer(recipe, GPU, batches)
        run(4)
        found[graph] = weights(run)
    tolerance = 1e-4 if precision == "float32" else 1e-2
    for ours, expected in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("speed", [SpeedRecipe(), SpeedRecipe(cuda_graph=True), SpeedRecipe(copy_stream=False)])
@pytest.mark.parametrize("optimizer", [OptimizerRecipe(weight_decay=1e-4), LARS], ids=["sgd", "lars"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_host_does_not_wait_in_the_loop(
    precision: Precision, optimizer: OptimizerRecipe, speed: SpeedRecipe
) -> None:
    own = setting(precision)
    recipe = own.recipe(optimizer=replace(optimizer, gradient_clipping=1.0), speed=speed)
    run = trainer(recipe, GPU, synthetic(own, on_device=False))
    run(15)  # kernels are chosen, memory is found, a graph is captured
    torch.cuda.set_sync_debug_mode("error")
    run(20)


def test_images_that_come_by_a_stream_of_their_own_are_the_same() -> None:
    own = setting("float32")
    [batch] = synthetic(own, 1, on_device=False)
    expected = ToDevice(own.recipe(), CPU)(copy.copy(batch))
    for copy_stream in (False, True):
        to_device = ToDevice(own.recipe(speed=SpeedRecipe(copy_stream=copy_stream)), GPU)
        for _ in range(20):  # memory is given back and used again meanwhile
            found = to_device(batch)
            busy = torch.randn(512, 512, device=GPU)
            busy @ busy
            torch.testing.assert_close(found.images.cpu(), expected.images)
            assert torch.equal(found.labels.cpu(), expected.labels)

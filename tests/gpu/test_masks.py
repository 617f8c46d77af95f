"""Dropout and stochastic depth on a GPU: the masks of a CPU, in a CUDA graph too, and no wait of the host."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import OurTrainer, Setting, synthetic
from resnet_dist.models.masks import Draws
from resnet_dist.recipe.schema import RegularizationRecipe, SpeedRecipe
from resnet_dist.training.device import set_up_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MASKS = RegularizationRecipe(dropout=0.2, stochastic_depth=0.3)
SETTING = Setting(batch=16, resolution=32, model="resnet20", num_classes=10, precision="float32")


def test_the_factors_are_those_of_a_cpu_bit_by_bit() -> None:
    positions = torch.tensor([0, 1, 10**6, 2**31, 2**32 + 1, 10**15, 2**62])
    factors = []
    for device in (CPU, GPU):
        draws = Draws(2**63 + 12345, [0.1, 0.5, 0.9] * 100, torch.float64, device)
        draws.draw(positions.to(device))
        factors.append(draws.factors.cpu())
    assert torch.equal(*factors)


def weights(device: torch.device, speed: SpeedRecipe) -> list[torch.Tensor]:
    recipe = SETTING.recipe(speed=speed, regularization=MASKS)
    set_up_torch(recipe, device, num_threads=1)
    run = OurTrainer(recipe, device, synthetic(SETTING))
    run(4)
    return [value.detach().cpu() for value in run.engine.module.state_dict().values()]


@pytest.mark.parametrize("graph", [False, True])
def test_steps_give_the_weights_that_they_give_on_a_cpu(graph: bool) -> None:
    speed = SpeedRecipe(cuda_graph=graph, cudnn_benchmark=False)
    for ours, expected in zip(weights(GPU, speed), weights(CPU, SpeedRecipe()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graph", [False, True])
def test_the_host_does_not_wait_in_the_loop(graph: bool) -> None:
    recipe = SETTING.recipe(speed=SpeedRecipe(cuda_graph=graph), regularization=MASKS)
    set_up_torch(recipe, GPU, num_threads=1)
    run = OurTrainer(recipe, GPU, synthetic(SETTING, on_device=False))
    run(15)  # kernels are chosen, memory is found, a graph is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(20)
    finally:
        torch.cuda.set_sync_debug_mode("default")

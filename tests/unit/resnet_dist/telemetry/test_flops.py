from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resnet_dist.models import MODELS, ResNet, build_model
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.telemetry.bottleneck import StepTimes
from resnet_dist.telemetry.flops import flops_per_image, mean_flops_per_image, peak_flops, why_no_peak


def test_resnet50_takes_three_times_its_forward_pass() -> None:
    """4.09 GMAC forward (He et al. 2015: 3.8, counted without the shortcut's strided convolutions' place)."""
    flops = flops_per_image(build_model(ModelRecipe(name="resnet50"), seed=0), resolution=224)
    assert flops == pytest.approx(3 * 2 * 4.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gmac"),
    [
        ("resnet50d", 4.35),  # timm's results/benchmark-infer-*.csv
        ("resnext50_32x4d", 4.23),  # torchvision's table of weights, like the ones below
        ("resnext101_32x8d", 16.41),
        ("resnext101_64x4d", 15.46),
        ("wide_resnet50_2", 11.40),
        ("wide_resnet101_2", 22.75),
    ],
)
def test_other_networks_take_three_times_what_is_published(name: str, gmac: float) -> None:
    with torch.device("meta"):
        model = ResNet(MODELS[name], 1000)
    assert flops_per_image(model, resolution=224) == pytest.approx(3 * 2 * gmac * 1e9, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [{"residual": False}, {"batch_norm": False}, {"pre_activation": True}, {"block": "bottleneck"}, {"width": 0.5}],
)
def test_the_operations_of_a_changed_network_are_those_of_its_layers(changes: dict[str, Any]) -> None:
    """The same as torch counts in a forward pass and a backward pass in training mode."""
    model = ResNet(replace(MODELS["resnet8"], **changes), 10)
    images = torch.zeros(1, 3, 32, 32)
    counter = FlopCounterMode(display=False)
    with counter:
        model(images).sum().backward()
    assert flops_per_image(model, resolution=32) == counter.get_total_flops()


def test_the_operations_of_a_run_are_the_mean_over_the_steps_of_its_windows() -> None:
    model = build_model(ModelRecipe(name="resnet20", num_classes=10), seed=0)
    resolutions = Resolutions(first_steps=(0, 5), pixels=(16, 32))
    small, large = (flops_per_image(model, pixels) for pixels in (16, 32))
    windows = [StepTimes(num, 1.0, (), 0.0, 0.0, last_step) for num, last_step in ((2, 4), (4, 8))]
    # steps 3 to 8, of which step 6, after five completed ones, is the first with large images
    assert mean_flops_per_image(model, resolutions, windows) == pytest.approx((3 * small + 3 * large) / 6)


def test_a_cpu_is_measured() -> None:
    peak = peak_flops(torch.device("cpu"), "float32")
    assert peak is not None
    assert peak[0] > 1e8
    assert "measured" in peak[1]


def test_a_gpu_is_looked_up_by_its_whole_name(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40")
    peak = peak_flops(device, "bfloat16")
    assert peak is not None
    assert peak[0] == 181e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4000")
    assert peak_flops(device, "bfloat16") is None
    assert "NVIDIA L4000 in bfloat16" in why_no_peak(device, "bfloat16")

from __future__ import annotations

import pytest
import torch

from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.telemetry.flops import flops_per_image, peak_flops


def test_resnet50_takes_three_times_its_forward_pass() -> None:
    """4.09 GMAC forward (He et al. 2015: 3.8, counted without the shortcut's strided convolutions' place)."""
    flops = flops_per_image(build_model(ModelRecipe(name="resnet50"), seed=0), resolution=224)
    assert flops == pytest.approx(3 * 2 * 4.09e9, rel=0.01)


def test_a_cpu_is_measured() -> None:
    peak = peak_flops(torch.device("cpu"), "float32")
    assert peak is not None
    assert peak[0] > 1e8
    assert "measured" in peak[1]

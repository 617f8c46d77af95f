from __future__ import annotations

import math

import pytest
import torch

from resnet_dist.engines.clipping import clip_scale


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 5.0, 100.0])
def test_a_gradient_is_clipped_as_torch_clips_it(max_norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(50, dtype=torch.float64, generator=generator)
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    scaled = gradient * clip_scale(gradient.square().sum(), max_norm)
    torch.testing.assert_close(scaled, parameter.grad, rtol=1e-14, atol=0)


def test_a_gradient_that_is_small_enough_keeps_its_bits() -> None:
    assert clip_scale(torch.tensor(0.0), max_norm=1.0).item() == 1.0
    assert clip_scale(torch.tensor(0.98), max_norm=1.0).item() == 1.0


def test_a_broken_gradient_stays_visibly_broken() -> None:
    assert math.isnan(clip_scale(torch.tensor(math.nan), max_norm=1.0).item())
    assert clip_scale(torch.tensor(math.inf), max_norm=1.0).item() == 0  # and infinity times 0 is not a number

"""How weights start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.models import BasicBlock, Bottleneck, build_model
from resnet_dist.models.initialisation import initialise, zero_last_gammas
from resnet_dist.recipe.schema import ModelRecipe


def test_convolutions_have_the_variance_of_he() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 128, 3, bias=False)
    initialise(convolution)
    # 73,728 draws: their standard deviation is within 1 % of the true one (3.8 standard errors).
    assert convolution.weight.std().item() == pytest.approx((2 / (3 * 3 * 128)) ** 0.5, rel=0.01)
    assert abs(convolution.weight.mean().item()) < 1e-3


def test_the_last_layer_starts_small_and_without_bias() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 100)
    initialise(linear)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert linear.bias.count_nonzero() == 0


def test_batch_norm_starts_as_the_identity() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    initialise(norm)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1.0] * 4, [0.0] * 4)


@pytest.mark.parametrize(("name", "last"), [("resnet20", "bn2"), ("resnet50", "bn3")])
def test_zero_gamma_sets_the_last_batch_norm_of_each_block_and_no_other(name: str, last: str) -> None:
    model = build_model(ModelRecipe(name=name, num_classes=3, zero_gamma=True), seed=0)
    zeros = {n for n, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.weight.any()}
    blocks = {n for n, module in model.named_modules() if isinstance(module, BasicBlock | Bottleneck)}
    assert zeros == {f"{block}.{last}" for block in blocks}


def test_a_block_with_zero_gamma_starts_as_its_shortcut() -> None:
    block = BasicBlock(4, 4, 1, None)
    zero_last_gammas(block)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_zero_gamma_is_refused_for_a_model_without_our_blocks() -> None:
    with pytest.raises(RecipeError, match=r"^model\.zero_gamma: Linear has no residual blocks"):
        zero_last_gammas(nn.Linear(2, 2))

"""How weights start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.models import MODELS, Block, ResNet, build_model
from resnet_dist.models.initialisation import initialise, zero_last_gammas
from resnet_dist.recipe.schema import InitialisationRecipe, ModelRecipe


def test_convolutions_have_the_variance_of_he() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 128, 3, bias=False)
    initialise(convolution)
    # 73,728 draws: their standard deviation is within 1 % of the true one (3.8 standard errors).
    assert convolution.weight.std().item() == pytest.approx((2 / (3 * 3 * 128)) ** 0.5, rel=0.01)
    assert abs(convolution.weight.mean().item()) < 1e-3


IN, OUT, AREA = 64, 128, 9
BY_INIT = [
    ({"name": "he_normal"}, lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")),
    ({"name": "he_normal", "mode": "fan_in"}, lambda w: nn.init.kaiming_normal_(w, mode="fan_in", nonlinearity="relu")),
    ({"name": "he_uniform"}, lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
    ({"name": "he_uniform", "mode": "fan_in"}, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
    ({"name": "xavier_normal"}, nn.init.xavier_normal_),
    ({"name": "xavier_uniform"}, nn.init.xavier_uniform_),
    ({"name": "normal"}, lambda w: nn.init.normal_(w, std=0.01)),
    ({"name": "normal", "std": 0.3}, lambda w: nn.init.normal_(w, std=0.3)),
]
VARIANCES = [2 / (AREA * OUT), 2 / (AREA * IN)] * 2 + [2 / (AREA * (IN + OUT))] * 2 + [0.01**2, 0.3**2]


@pytest.mark.parametrize(
    ("keys", "init", "variance"),
    [(keys, init, variance) for (keys, init), variance in zip(BY_INIT, VARIANCES, strict=True)],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_each_initialisation_has_the_variance_of_its_formula_and_is_torchs(
    keys: dict[str, Any], init: Any, variance: float
) -> None:
    convolution = nn.Conv2d(IN, OUT, 3, bias=True)
    torch.manual_seed(0)
    initialise(convolution, InitialisationRecipe(**keys))
    weight = convolution.weight.detach()
    # 73,728 draws: a variance is within 2 % of the true one (3.8 standard errors for a normal distribution)
    assert weight.square().mean().item() == pytest.approx(variance, rel=0.02)
    if keys["name"].endswith("uniform"):
        assert weight.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=1e-3)
    assert convolution.bias is not None
    assert convolution.bias.count_nonzero() == 0
    torch.manual_seed(0)
    assert torch.equal(weight, init(torch.empty_like(weight)))


@pytest.mark.parametrize("keys", [{}, {"initialisation": InitialisationRecipe(name="xavier_normal")}])
def test_a_network_is_drawn_layer_by_layer_and_its_classifier_stays_as_it_is(keys: dict[str, Any]) -> None:
    model = build_model(ModelRecipe(name="resnet8", num_classes=5, **keys), seed=7)
    torch.manual_seed(7)
    expected = ResNet(MODELS["resnet8"], 5)  # takes the same numbers from the generator
    for module in expected.modules():
        if isinstance(module, nn.Conv2d):
            if keys:
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


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
    blocks = {n for n, module in model.named_modules() if isinstance(module, Block)}
    assert zeros == {f"{block}.{last}" for block in blocks}


def test_a_block_with_zero_gamma_starts_as_its_shortcut() -> None:
    block = ResNet(MODELS["resnet8"], 3).get_submodule("layer1.0")
    zero_last_gammas(block)
    x = torch.rand(2, 16, 5, 5)
    assert torch.equal(block(x), x)


def test_zero_gamma_is_refused_for_a_model_without_our_blocks() -> None:
    with pytest.raises(RecipeError, match=r"^model\.zero_gamma: Linear has no residual blocks"):
        zero_last_gammas(nn.Linear(2, 2))


@pytest.mark.parametrize("keys", [{"residual": False}, {"normalisation": "none"}, {"activation_order": "pre"}])
def test_zero_gamma_is_refused_where_no_shortcut_would_be_left(keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^model\.zero_gamma: ResNet has no residual blocks"):
        build_model(ModelRecipe(name="resnet8", zero_gamma=True, **keys), seed=0)

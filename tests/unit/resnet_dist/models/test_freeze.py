"""Layers that are not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.models import build_model
from resnet_dist.models.freeze import freeze
from resnet_dist.recipe.schema import ModelRecipe


class Ten(nn.Module):
    """Layers layer1 and layer10, and a batch norm without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.layer10 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout())
        self.fc = nn.Linear(4, 2)


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def evaluating(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if not module.training}


@pytest.mark.parametrize(
    ("names", "parameters", "norms"),
    [
        (["layer1"], {"layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias"}, {"layer1.1"}),
        (["layer1.0"], {"layer1.0.weight", "layer1.0.bias"}, set()),
        (["layer1.0.weight", "fc.bias"], {"layer1.0.weight", "fc.bias"}, set()),
        (["layer1.1.weight"], {"layer1.1.weight"}, set()),
        (["layer1.1.weight", "layer1.1.bias"], {"layer1.1.weight", "layer1.1.bias"}, {"layer1.1"}),
        (["layer10"], {"layer10.0.weight", "layer10.0.bias"}, {"layer10.1"}),
        (["layer10.0"], {"layer10.0.weight", "layer10.0.bias"}, set()),
    ],
)
def test_names_stand_for_whole_parts(names: list[str], parameters: set[str], norms: set[str]) -> None:
    model = Ten()
    freeze(model, names)
    assert frozen(model) == parameters
    assert evaluating(model) == norms


def test_a_parameter_that_was_frozen_stays_frozen_and_its_norm_in_training() -> None:
    model = Ten()
    for parameter in model.layer1[1].parameters():
        parameter.requires_grad_(False)
    freeze(model, ["fc.bias"])
    assert frozen(model) == {"layer1.1.weight", "layer1.1.bias", "fc.bias"}
    assert evaluating(model) == set()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layer2", r"fc, layer1, layer10\. Did you mean layer1\?"),
        ("layer1.0.wight", r"Did you mean layer1\.0\.weight\?"),
        ("layer", "Allowed: fc, layer1, layer10"),
        ("layer10.2", "which the model does not have"),  # dropout: nothing to freeze
        ("layer1.", "which the model does not have"),
        ("", 'found ""'),
    ],
)
def test_a_name_that_the_model_does_not_have_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint) as caught:
        freeze(Ten(), ["fc", name])
    assert caught.value.key == "model.freeze"


@pytest.mark.parametrize("names", [["layer1", "layer10", "fc"], ["layer1", "layer10", "fc.weight", "fc.bias"]])
def test_freezing_everything_is_refused_and_changes_nothing(names: list[str]) -> None:
    model = Ten()
    with pytest.raises(RecipeError, match="all 8 parameters are frozen, and nothing is left to train"):
        freeze(model, names)
    assert frozen(model) == evaluating(model) == set()


def test_a_network_is_built_with_frozen_layers() -> None:
    model = build_model(ModelRecipe(name="resnet20", num_classes=10, freeze=("conv1", "bn1", "layer1")), seed=0)
    assert frozen(model) == {
        name for name, _ in model.named_parameters() if name.split(".")[0] in ("conv1", "bn1", "layer1")
    }
    assert evaluating(model) == {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.split(".")[0] in ("bn1", "layer1")
    }
    same = build_model(ModelRecipe(name="resnet20", num_classes=10), seed=0)
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))

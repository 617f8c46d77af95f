"""Operations and weights of networks without torch, against torch's own counts."""

from __future__ import annotations

from typing import Any

import pytest

from resnet_dist.models import build_model
from resnet_dist.recipe.network_cost import num_weights, training_flops
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.telemetry.flops import flops_per_image


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet8", {}),
        ("resnet14", {"residual": False, "normalisation": "none"}),
        ("resnet20", {"width": 0.5, "shortcut": "projection_all", "activation_order": "pre"}),
        ("resnet8", {"block": "bottleneck"}),
        ("resnet18", {}),
        ("resnet18d", {}),
        ("resnext50_32x4d", {}),
    ],
)
def test_the_counts_are_those_of_torch(name: str, changes: dict[str, Any]) -> None:
    recipe = ModelRecipe(name=name, num_classes=7, **changes)
    model = build_model(recipe, seed=0)
    assert training_flops(recipe, 33) == flops_per_image(model, 33)
    assert num_weights(recipe) == sum(weights.numel() for weights in model.parameters() if weights.ndim > 1)


def test_a_model_of_the_users_is_unknown() -> None:
    recipe = ModelRecipe(name="my_models.wide:build")
    assert training_flops(recipe, 224) is None
    assert num_weights(recipe) is None

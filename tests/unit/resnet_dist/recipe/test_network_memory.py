"""The memory of a step and the batch norms without torch, against those of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from resnet_dist.models import build_model
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.network_memory import num_batch_norms, step_bytes
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Precision,
    Recipe,
    ScheduleRecipe,
)
from resnet_dist.telemetry import memory


def recipe(resolution: int = 32, precision: Precision = "float32", **model: Any) -> Recipe:
    return Recipe(
        data=DataRecipe(resolution=resolution),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("1 epoch"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(**{"num_classes": 10, **model}),
        precision=precision,
    )


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50d", "resnext50_32x4d"])
def test_the_tensors_of_a_network_are_those_of_autograd(name: str) -> None:
    compare(recipe(100, "bfloat16", name=name))


@pytest.mark.parametrize(
    "keys",
    [
        {"normalisation": "none"},
        {"activation_order": "pre"},
        {"activation_order": "pre", "normalisation": "none"},
        {"residual": False},
        {"shortcut": "identity"},
        {"shortcut": "projection_all"},
        {"block": "bottleneck"},
        {"width": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["resnet14", "resnet18d"])
def test_a_changed_network_is_counted(name: str, keys: dict[str, Any]) -> None:
    compare(recipe(name=name, **keys))


def compare(one: Recipe) -> None:
    found, counted = step_bytes(one), memory.step_bytes(one)
    assert found is not None
    assert found[1] == pytest.approx(counted[1], rel=1e-6)
    assert found[0] == pytest.approx(counted[0], rel=0.02)  # without norms and biases
    norms = [module for module in build_model(one.model, seed=0).modules() if isinstance(module, nn.BatchNorm2d)]
    assert num_batch_norms(one.model) == len(norms)


def test_state_and_average_are_counted() -> None:
    one = recipe(name="resnet8")
    found = step_bytes(one)
    assert found is not None
    plain = step_bytes(replace(one, optimizer=OptimizerRecipe(momentum=0)))
    moments = step_bytes(replace(one, optimizer=OptimizerRecipe(name="lamb"), ema=EmaRecipe(decay=0.9)))
    assert plain is not None
    assert moments is not None
    assert plain[0] * 3 == found[0] * 2 == pytest.approx(moments[0] * 6 / 5)


def test_a_users_model_is_unknown() -> None:
    assert step_bytes(recipe(name="package.module:function")) is None
    assert num_batch_norms(recipe(name="package.module:function").model) is None

"""Keys of the optimizer that have no effect, or values out of range, are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, OptimizerRecipe, Recipe, ScheduleRecipe

GOOD = Recipe(
    data=DataRecipe(root="/data", num_samples=1000),
    batch=BatchRecipe(size=64),
    duration=Duration.parse("10 epochs"),
    schedule=ScheduleRecipe(peak_lr=0.1),
)


def problems(l1: float = 0.0, **keys: Any) -> list[str]:
    regularization = dataclasses.replace(GOOD.regularization, l1=l1)
    recipe = dataclasses.replace(GOOD, optimizer=OptimizerRecipe(**keys), regularization=regularization)
    return [f"{error.key}: {error}" for error in rules.problems(recipe, world_size=1)]


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "lars", "nesterov": True, "lr_in_momentum": False},
        {"name": "lamb", "betas": (0.0, 0.999), "epsilon": 1e-8, "weight_decay": 0.1},
        {"name": "adamw", "betas": (0.9, 0.95), "momentum": 0.9},
        {"decoupled_weight_decay": True, "weight_decay": 1e-4, "nesterov": True},
        {"lr_factors": {"fc": 10, "layer1": 0.1}},
        {"name": "my_package.mine:make", "momentum": 0.5},
        {"l1": 1e-5},
    ],
)
def test_what_has_an_effect_is_allowed(keys: dict[str, Any]) -> None:
    assert problems(**keys) == []


@pytest.mark.parametrize(
    ("keys", "key", "text"),
    [
        ({"name": "lamb", "momentum": 0.8}, "momentum", "sgd and lars; lamb and adamw have betas"),
        ({"name": "adamw", "nesterov": True}, "nesterov", "only with optimizer.name sgd and lars"),
        ({"betas": (0.9, 0.9)}, "betas", "only with optimizer.name lamb and adamw"),
        ({"name": "my_package.mine:make", "betas": (0.9, 0.9)}, "betas", "only with"),
        ({"name": "lamb", "betas": (0.9, 1.0)}, "betas", "two numbers, each at least 0 and below 1"),
        ({"epsilon": 1e-3}, "epsilon", "only with optimizer.name lars, lamb and adamw"),
        ({"name": "adamw", "epsilon": 0.0}, "epsilon", "a gradient of 0 would be divided by 0"),
        ({"name": "lamb", "trust_coefficient": 0.1}, "trust_coefficient", "only with optimizer.name lars"),
        ({"name": "lamb", "lr_in_momentum": True}, "lr_in_momentum", "only with optimizer.name lars"),
        (
            {"name": "adamw", "decoupled_weight_decay": True, "weight_decay": 0.1},
            "decoupled_weight_decay",
            "that of lamb and adamw always is",
        ),
        ({"decoupled_weight_decay": True}, "decoupled_weight_decay", "only with optimizer.weight_decay above 0"),
        ({"lr_factors": {"fc": 0.0}}, "lr_factors", "each with a number above 0"),
        ({"lr_factors": {"fc": 1.0, "layer1": math.inf}}, "lr_factors", "each with a number above 0"),
        ({"lr_factors": {"fc": math.nan}}, "lr_factors", "each with a number above 0"),
        ({"name": "adam"}, "name", "sgd, lars, lamb, adamw, or package.module:function. Did you mean adamw?"),
    ],
)
def test_what_has_none_is_refused(keys: dict[str, Any], key: str, text: str) -> None:
    [problem] = problems(**keys)
    assert problem.startswith(f"optimizer.{key}: ")
    assert text in problem


@pytest.mark.parametrize("l1", [-1e-5, math.inf, math.nan])
def test_l1_is_a_number_from_0_up(l1: float) -> None:
    [problem] = problems(l1)
    assert problem.startswith("regularization.l1: ")

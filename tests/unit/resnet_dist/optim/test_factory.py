"""From the recipe to the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.optim import Lamb, Lars, build_optimizer, sgd_kernels
from resnet_dist.optim.factory import Kernels
from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    SpeedRecipe,
)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_optimizers_of_factory_test.py").write_text(
        "import torch\n"
        "def rmsprop(groups, momentum, weight_decay, alpha):\n"
        "    return torch.optim.RMSprop(groups, momentum=momentum, weight_decay=weight_decay, alpha=alpha)\n"
        "def in_one_group(groups, momentum, weight_decay):\n"
        "    return torch.optim.SGD([p for group in groups for p in group['params']], lr=0.1)\n"
        "def half(groups, momentum, weight_decay):\n"
        "    return torch.optim.SGD(groups[:1], lr=0.1)\n"
        "def nothing(groups, momentum, weight_decay):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_optimizers_of_factory_test"


def _settings(optimizer: torch.optim.Optimizer, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(group[name] for name in names) for group in optimizer.param_groups]


def test_sgd_decays_only_the_weights(model: nn.Module) -> None:
    optimizer = build_optimizer(OptimizerRecipe(momentum=0.8, nesterov=True, weight_decay=1e-4), model)
    assert type(optimizer) is torch.optim.SGD
    names = ("names", "weight_decay", "momentum", "nesterov", "foreach", "lr")
    assert _settings(optimizer, *names) == [
        (["0.weight", "3.weight"], 1e-4, 0.8, True, True, 0.0),
        (["0.bias", "1.weight", "1.bias", "3.bias"], 0.0, 0.8, True, True, 0.0),
    ]


@pytest.mark.parametrize(
    ("change", "kernels"),
    [
        ({}, "fused"),
        ({"speed": SpeedRecipe(sgd_kernel="loop")}, "loop"),
        ({"precision": "float16"}, "foreach"),  # a first step that is skipped would leave its momentum unwritten
        ({"model": ModelRecipe(name="mine:build", num_classes=2)}, "foreach"),  # its gradients may come later
    ],
)
def test_auto_is_fused_on_a_cpu_where_that_is_safe(change: dict[str, Any], kernels: str) -> None:
    recipe = Recipe(
        data=DataRecipe(root=""),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("1 steps"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        **change,
    )
    assert sgd_kernels(recipe, torch.device("cpu")) == kernels
    assert build_optimizer(OptimizerRecipe(), nn.Linear(2, 2), sgd_kernels(recipe, torch.device("cpu")))


def test_lars_has_the_defaults_of_mlperf(model: nn.Module) -> None:
    optimizer = build_optimizer(OptimizerRecipe(name="lars", momentum=0.9, weight_decay=2e-4), model)
    assert type(optimizer) is Lars
    names = ("decay", "weight_decay", "momentum", "trust_coefficient", "epsilon", "lr_in_momentum")
    assert _settings(optimizer, *names) == [
        (True, 2e-4, 0.9, 0.001, 0.0, True),
        (False, 0.0, 0.9, 0.001, 0.0, True),
    ]


def test_lars_takes_what_the_recipe_gives(model: nn.Module) -> None:
    recipe = OptimizerRecipe(name="lars", trust_coefficient=0.02, epsilon=1e-8, lr_in_momentum=False)
    optimizer = build_optimizer(recipe, model)
    assert _settings(optimizer, "trust_coefficient", "epsilon", "lr_in_momentum")[0] == (0.02, 1e-8, False)


def test_lars_takes_nesterov_and_is_fused_in_float32_only(model: nn.Module) -> None:
    recipe = OptimizerRecipe(name="lars", nesterov=True)
    assert _settings(build_optimizer(recipe, model), "nesterov") == [(True,), (True,)]
    fused = [build_optimizer(recipe, model.to(dtype), "fused") for dtype in (torch.float64, torch.float32)]
    assert [optimizer._fused for optimizer in fused if isinstance(optimizer, Lars)] == [False, True]


def test_lamb_has_its_defaults_and_takes_what_the_recipe_gives(model: nn.Module) -> None:
    optimizer = build_optimizer(OptimizerRecipe(name="lamb", weight_decay=0.1), model)
    assert type(optimizer) is Lamb
    names = ("decay", "weight_decay", "betas", "epsilon")
    assert _settings(optimizer, *names) == [(True, 0.1, (0.9, 0.999), 1e-6), (False, 0.0, (0.9, 0.999), 1e-6)]
    recipe = OptimizerRecipe(name="lamb", betas=(0.8, 0.9), epsilon=1e-3)
    assert _settings(build_optimizer(recipe, model), "betas", "epsilon")[0] == ((0.8, 0.9), 1e-3)


@pytest.mark.parametrize(("kernels", "foreach", "fused"), [("foreach", True, None), ("fused", False, True)])
def test_adamw_is_torchs(model: nn.Module, kernels: Kernels, foreach: bool, fused: bool | None) -> None:
    optimizer = build_optimizer(OptimizerRecipe(name="adamw", weight_decay=0.1), model, kernels)
    assert type(optimizer) is torch.optim.AdamW
    names = ("weight_decay", "betas", "eps", "foreach", "capturable")
    assert _settings(optimizer, *names) == [
        (0.1, (0.9, 0.999), 1e-8, foreach, False),
        (0.0, (0.9, 0.999), 1e-8, foreach, False),
    ]
    assert bool(optimizer.param_groups[0]["fused"]) is bool(fused)
    recipe = OptimizerRecipe(name="adamw", betas=(0.8, 0.9), epsilon=1e-3)
    assert _settings(build_optimizer(recipe, model), "betas", "eps")[0] == ((0.8, 0.9), 1e-3)


@pytest.mark.parametrize("name", rules.OPTIMIZER_NAMES)
def test_factors_of_the_learning_rate_reach_the_groups(model: nn.Module, name: str) -> None:
    optimizer = build_optimizer(OptimizerRecipe(name=name, lr_factors={"3": 10.0}), model)
    assert _settings(optimizer, "decay", "lr_factor") == [(True, 1.0), (True, 10.0), (False, 1.0), (False, 10.0)]


def test_decoupled_decay_is_not_that_of_sgd(model: nn.Module) -> None:
    optimizer = build_optimizer(OptimizerRecipe(weight_decay=0.1, decoupled_weight_decay=True), model)
    assert _settings(optimizer, "weight_decay") == [(0.0,), (0.0,)]


def test_a_users_function_gets_the_groups_and_its_arguments(model: nn.Module, user_module: str) -> None:
    recipe = OptimizerRecipe(name=f"{user_module}:rmsprop", momentum=0.5, weight_decay=0.1, arguments={"alpha": 0.7})
    optimizer = build_optimizer(recipe, model)
    assert type(optimizer) is torch.optim.RMSprop
    assert _settings(optimizer, "weight_decay", "momentum", "alpha") == [(0.1, 0.5, 0.7), (0.0, 0.5, 0.7)]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("half", "returned an optimizer over 2 parameters, not over the 6 given"),
        ("nothing", "returned an object of type NoneType"),
        ("rmsprop", "missing a required argument: 'alpha'"),
        ("absent", "has no absent"),
    ],
)
def test_a_users_function_that_will_not_do_is_refused(
    model: nn.Module, user_module: str, function: str, problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        build_optimizer(OptimizerRecipe(name=f"{user_module}:{function}"), model)
    assert caught.value.key == "optimizer.name"


def test_a_users_optimizer_with_groups_of_its_own_has_no_factors_of_the_learning_rate(
    model: nn.Module, user_module: str
) -> None:
    name, factors = f"{user_module}:in_one_group", {"3": 10.0}
    build_optimizer(OptimizerRecipe(name=name), model)
    with pytest.raises(RecipeError, match="has groups without the key lr_factor") as caught:
        build_optimizer(OptimizerRecipe(name=name, lr_factors=factors), model)
    assert caught.value.key == "optimizer.lr_factors"
    of_groups = OptimizerRecipe(name=f"{user_module}:rmsprop", arguments={"alpha": 0.7}, lr_factors=factors)
    assert _settings(build_optimizer(of_groups, model), "lr_factor") == [(1.0,), (10.0,), (1.0,), (10.0,)]


def test_an_unknown_name_is_refused(model: nn.Module) -> None:
    with pytest.raises(RecipeError, match="'adam' does not name a function"):
        build_optimizer(OptimizerRecipe(name="adam"), model)


def test_every_optimizer_that_the_rules_allow_can_be_built(model: nn.Module) -> None:
    for name in rules.OPTIMIZER_NAMES:
        build_optimizer(OptimizerRecipe(name=name), model)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no trainable parameter"):
        build_optimizer(OptimizerRecipe(), nn.ReLU())

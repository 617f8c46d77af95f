"""From the recipe to the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.models import MODELS, build_model
from resnet_dist.recipe import rules
from resnet_dist.recipe.schema import ModelRecipe

SMALL = ModelRecipe(name="resnet20", num_classes=10)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_models_of_build_test.py").write_text(
        "import torch\n"
        "def linear(num_classes, width=4):\n    return torch.nn.Linear(width, num_classes)\n"
        "def word(num_classes):\n    return 'model'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_models_of_build_test"


def _equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_names_are_those_that_the_rules_allow() -> None:
    assert set(MODELS) == set(rules.MODEL_NAMES)


def test_the_parameters_are_a_function_of_the_seed() -> None:
    first = build_model(SMALL, seed=3)
    torch.rand(5)  # whatever else was drawn in this process
    assert _equal(first, build_model(SMALL, seed=3))
    assert not _equal(first, build_model(SMALL, seed=4))


def test_building_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    build_model(SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_built_float32_in_training_mode() -> None:
    model = build_model(SMALL, seed=0)
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_users_function_gets_the_classes_and_its_arguments(user_module: str) -> None:
    recipe = ModelRecipe(name=f"{user_module}:linear", num_classes=3, arguments={"width": 5})
    model = build_model(recipe, seed=1)
    assert isinstance(model, nn.Linear)
    assert model.weight.shape == (3, 5)
    assert _equal(model, build_model(recipe, seed=1))


def test_a_torchvision_model_is_a_users_function() -> None:
    model = build_model(ModelRecipe(name="torchvision.models:squeezenet1_1", num_classes=3), seed=0)
    assert type(model).__name__ == "SqueezeNet"


@pytest.mark.parametrize(
    ("recipe", "key", "problem"),
    [
        (ModelRecipe(name="resnet51"), "model.name", "'resnet51' does not name a function"),
        (ModelRecipe(name="{}:word"), "model.name", "returned an object of type str"),
        (ModelRecipe(name="{}:linear", zero_gamma=True), "model.zero_gamma", "Linear has no residual blocks"),
        (ModelRecipe(name="{}:linear", arguments={"depth": 1}), "model.name", "unexpected keyword argument 'depth'"),
    ],
)
def test_what_cannot_be_built_is_refused(user_module: str, recipe: ModelRecipe, key: str, problem: str) -> None:
    named = ModelRecipe(name=recipe.name.format(user_module), zero_gamma=recipe.zero_gamma, arguments=recipe.arguments)
    with pytest.raises(RecipeError) as caught:
        build_model(named, seed=0)
    assert caught.value.key == key
    assert problem in caught.value.problem

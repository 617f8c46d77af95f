"""Networks that do not exist, and keys of the network that have no effect, are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from resnet_dist.models import MODELS
from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    InitialisationRecipe,
    ModelRecipe,
    Recipe,
    ScheduleRecipe,
)

GOOD = Recipe(
    data=DataRecipe(root="/data", num_samples=1000),
    batch=BatchRecipe(size=64),
    duration=Duration.parse("10 epochs"),
    schedule=ScheduleRecipe(peak_lr=0.1),
)
DEPTH = "regularization.stochastic_depth"
MINE = "my_package.my_module:build"
PLAIN = {"residual": False}
WITHOUT_NORM = {"normalisation": "none"}
PRE = {"activation_order": "pre"}
TRAINED = {"weights": "trained.pt"}


def recipe_of(model: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    own = dict(model)
    if "initialisation" in own:
        own["initialisation"] = InitialisationRecipe(**own["initialisation"])
    changes = {name: dataclasses.replace(getattr(GOOD, name), **keys) for name, keys in sections.items()}
    return dataclasses.replace(GOOD, model=ModelRecipe(**own), **changes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keys", [{}, PLAIN, WITHOUT_NORM, PRE, {**PLAIN, **WITHOUT_NORM, **PRE}])
def test_every_network_may_be_plain_without_normalisation_and_pre_activated(name: str, keys: dict[str, Any]) -> None:
    assert rules.problems(recipe_of({"name": name, **keys}), world_size=1) == []


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ({"width": 0.01}, {}),
        ({"width": 16}, {}),
        ({"name": "resnext50_32x4d", "block": "bottleneck", "shortcut": "identity"}, {}),
        ({"name": "resnet8", "block": "bottleneck", "shortcut": "projection_all"}, {}),
        ({"initialisation": {"name": "he_uniform", "mode": "fan_in"}}, {}),
        ({"initialisation": {"name": "normal", "std": 0.3}}, {}),
        ({"name": MINE, "zero_gamma": True}, {}),
        ({"zero_gamma": True}, {"regularization": {"dropout": 0.5, "stochastic_depth": 0.999}}),
        (PLAIN, {"regularization": {"dropout": 0.5}}),
        (WITHOUT_NORM, {"batch": {"num_micro_batches": 64}}),
        (TRAINED, {}),
        ({**TRAINED, "zero_gamma": True}, {}),  # runs of earlier versions have both
    ],
)
def test_a_recipe_that_makes_sense_has_no_problems(model: dict[str, Any], sections: dict[str, Any]) -> None:
    assert rules.problems(recipe_of(model, **sections), world_size=1) == []


@pytest.mark.parametrize(
    ("model", "sections", "key", "allowed"),
    [
        ({"name": "resnet9"}, {}, "model.name", "Did you mean resnet8?"),
        ({"width": 0.0}, {}, "model.width", "above 0 and at most 16"),
        ({"width": float("inf")}, {}, "model.width", "above 0 and at most 16"),
        ({"name": "resnext50_32x4d", "block": "basic"}, {}, "model.block", "bottleneck, or leave it out"),
        ({"name": "wide_resnet50_2", "block": "basic"}, {}, "model.block", "bottleneck, or leave it out"),
        ({**PLAIN, "shortcut": "projection"}, {}, "model.shortcut", "only with model.residual true"),
        ({**PLAIN, "zero_gamma": True}, {}, "model.zero_gamma", "only with model.residual true"),
        ({**WITHOUT_NORM, "zero_gamma": True}, {}, "model.zero_gamma", "only with model.normalisation batch"),
        ({**PRE, "zero_gamma": True}, {}, "model.zero_gamma", "only with model.activation_order original"),
        ({**TRAINED, "initialisation": {"name": "he_uniform"}}, {}, "model.initialisation.name", "model.weights null"),
        ({**TRAINED, "initialisation": {"mode": "fan_in"}}, {}, "model.initialisation.mode", "model.weights null"),
        (WITHOUT_NORM, {"batch_norm": {"span": 32}}, "batch_norm.span", "only with model.normalisation batch"),
        (WITHOUT_NORM, {"batch_norm": {"momentum": 0.2}}, "batch_norm.momentum", "only with model.normalisation batch"),
        (WITHOUT_NORM, {"batch_norm": {"epsilon": 0.2}}, "batch_norm.epsilon", "only with model.normalisation batch"),
        ({"initialisation": {"name": "normal", "mode": "fan_in"}}, {}, "model.initialisation.mode", "he_normal or"),
        ({"initialisation": {"name": "xavier_normal", "std": 0.1}}, {}, "model.initialisation.std", "normal"),
        ({"initialisation": {"name": "normal", "std": 0.0}}, {}, "model.initialisation.std", "above 0"),
        ({}, {"regularization": {"dropout": 1.0}}, "regularization.dropout", "at least 0 and below 1"),
        ({}, {"regularization": {"dropout": float("nan")}}, "regularization.dropout", "at least 0 and below 1"),
        ({}, {"regularization": {"stochastic_depth": 1.0}}, DEPTH, "at least 0 and below 1"),
        (PLAIN, {"regularization": {"stochastic_depth": 0.1}}, DEPTH, "model.residual true"),
        ({"name": MINE}, {"regularization": {"dropout": 0.1}}, "regularization.dropout", "a built-in network"),
        ({"name": MINE}, {"regularization": {"stochastic_depth": 0.1}}, DEPTH, "a built-in network"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: dict[str, Any], sections: dict[str, Any], key: str, allowed: str
) -> None:
    [problem] = rules.problems(recipe_of(model, **sections), world_size=1)
    assert problem.key == key
    assert allowed in problem.allowed


@pytest.mark.parametrize(
    "model",
    [
        *(PLAIN, WITHOUT_NORM, PRE, {"width": 2.0}, {"block": "basic"}, {"shortcut": "identity"}),
        {"initialisation": {"name": "he_uniform"}},
        {"initialisation": {"mode": "fan_in"}},
    ],
)
def test_the_keys_of_built_in_networks_are_refused_for_a_users_function(model: dict[str, Any]) -> None:
    [problem] = rules.problems(recipe_of({"name": MINE, **model}), world_size=1)
    assert problem.key.startswith("model.")
    assert "only with model.name of a built-in network" in problem.allowed


def test_without_batch_norm_the_span_stays_auto_and_nothing_is_exchanged() -> None:
    recipe = recipe_of(WITHOUT_NORM)
    assert rules.settled(recipe) is recipe
    assert recipe.batch_norm.fixed_span == "worker"

"""Builds the optimizer of a recipe."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.optim.groups import Group, decay_groups
from resnet_dist.optim.lars import Lars
from resnet_dist.recipe.references import call_function, is_reference
from resnet_dist.recipe.schema import OptimizerRecipe, Recipe

Kernels = Literal["foreach", "fused", "loop"]


def sgd_kernels(recipe: Recipe, device: torch.device) -> Kernels:
    """The kernels that `speed.sgd_kernel` names; `auto` is fused on a CPU (a third of the time), else foreach.

    torch's fused SGD allocates its momentum in the first step. The momentum is uninitialised if a loss scaler skips
    that step, and the optimizer fails if a parameter gets its first gradient in a later step than others of its group.
    `auto` is therefore foreach for float16 and for a user's model.
    """
    if recipe.speed.sgd_kernel != "auto":
        return recipe.speed.sgd_kernel
    is_safe = recipe.precision != "float16" and not is_reference(recipe.model.name)
    return "fused" if device.type == "cpu" and is_safe else "foreach"


def build_optimizer(recipe: OptimizerRecipe, model: nn.Module, kernels: Kernels = "foreach") -> torch.optim.Optimizer:
    """The optimizer of `model`'s trainable parameters, in the groups of `decay_groups`.

    The LR is 0 until the engine writes the step's LR into the groups. `sgd` is torch's, with the given kernels. The
    defaults of `lars` are MLPerf's: trust_coefficient 0.001, epsilon 0, LR inside the momentum. A user's function gets
    the groups and returns a torch optimizer over exactly these parameters.

    Raises RecipeError for a user's function that cannot be loaded or returns something else.
    """
    groups = decay_groups(model)
    if not groups:
        raise RecipeError("model", "has no trainable parameters", "a model with at least one")
    if recipe.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=0.0,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            foreach=kernels == "foreach",
            fused=kernels == "fused",
        )
    if recipe.name == "lars":
        return _lars(recipe, groups)
    return _from_function(recipe, groups)


def _lars(recipe: OptimizerRecipe, groups: list[Group]) -> Lars:
    assert not recipe.nesterov  # refused by the rules
    return Lars(
        groups,
        lr=0.0,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        trust_coefficient=0.001 if recipe.trust_coefficient is None else recipe.trust_coefficient,
        epsilon=0.0 if recipe.epsilon is None else recipe.epsilon,
        lr_in_momentum=True if recipe.lr_in_momentum is None else recipe.lr_in_momentum,
    )


def _from_function(recipe: OptimizerRecipe, groups: list[Group]) -> torch.optim.Optimizer:
    key = "optimizer.name"
    ours = sorted(id(parameter) for group in groups for parameter in group["params"])
    optimizer = call_function(
        key, recipe.name, groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay, **recipe.arguments
    )
    if not isinstance(optimizer, torch.optim.Optimizer):
        problem = f"{recipe.name!r} returned an object of type {type(optimizer).__name__}"
        raise RecipeError(key, problem, "a function that returns a torch.optim.Optimizer")
    theirs = sorted(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    if ours != theirs:
        problem = f"{recipe.name!r} returned an optimizer over {len(theirs)} parameters, not over the {len(ours)} given"
        raise RecipeError(key, problem, "an optimizer over exactly the parameters in the groups it is called with")
    return optimizer

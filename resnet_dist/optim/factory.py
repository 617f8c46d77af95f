"""Builds the optimizer of a recipe."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.optim.groups import Group, decay_groups
from resnet_dist.optim.lamb import EPSILON, Lamb
from resnet_dist.optim.lars import Lars
from resnet_dist.optim.penalties import add_decoupled_decay, add_l1
from resnet_dist.recipe.references import call_function, is_reference
from resnet_dist.recipe.schema import OptimizerRecipe, Recipe

Kernels = Literal["foreach", "fused", "loop"]

DEFAULT_BETAS = (0.9, 0.999)  # Kingma & Ba 2015; You et al. 2020
_GROUPS_AS_GIVEN = "an optimizer with the groups that its function is given"


def sgd_kernels(recipe: Recipe, device: torch.device) -> Kernels:
    """The kernels that `speed.sgd_kernel` names; `auto` is fused on a CPU (a third of the time), else foreach.

    The key is for sgd; the other optimizers follow `auto`.

    torch's fused SGD allocates its momentum in the first step. The momentum is uninitialised if a loss scaler skips
    that step, and the optimizer fails if a parameter gets its first gradient in a later step than others of its group.
    torch's scaler also calls a fused optimizer in a step that is skipped. `auto` is therefore foreach for float16 and
    for a user's model.
    """
    if recipe.speed.sgd_kernel != "auto":
        return recipe.speed.sgd_kernel
    is_safe = recipe.precision != "float16" and not is_reference(recipe.model.name)
    return "fused" if device.type == "cpu" and is_safe else "foreach"


def build_optimizer(
    recipe: OptimizerRecipe, model: nn.Module, kernels: Kernels = "foreach", l1: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of `model`'s trainable parameters, in the groups of `decay_groups`; see `build_from_groups`.

    Raises RecipeError as that does, for a model without trainable parameters, and for factors of the LR of modules that
    the model does not have.
    """
    groups = decay_groups(model, recipe.lr_factors)
    if not groups:
        raise RecipeError("model", "has no trainable parameters", "a model with at least one")
    return build_from_groups(recipe, groups, kernels, l1)


def build_from_groups(
    recipe: OptimizerRecipe, groups: list[Group], kernels: Kernels = "foreach", l1: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of the parameters in `groups`, as `decay_groups` makes them.

    The LR is 0 until the engine writes the step's LR into the groups. `sgd` and `adamw` are torch's, with the given
    kernels. The defaults of `lars` are MLPerf's: trust_coefficient 0.001, epsilon 0, LR inside the momentum. A user's
    function gets the groups and returns a torch optimizer over exactly these parameters. `l1` is
    `regularization.l1`, for any optimizer.

    Raises RecipeError for a user's function that cannot be loaded or returns something else, and for `lr_factors` or
    `l1` if its optimizer has groups of its own.
    """
    builders = {"sgd": _sgd, "lars": _lars, "lamb": _lamb, "adamw": _adamw}
    if recipe.name in builders:
        optimizer = builders[recipe.name](recipe, groups, kernels)
    else:
        optimizer = _from_function(recipe, groups)
    if recipe.lr_factors and any("lr_factor" not in group for group in optimizer.param_groups):
        problem = f"the optimizer of {recipe.name!r} has groups without the key lr_factor"
        raise RecipeError("optimizer.lr_factors", problem, _GROUPS_AS_GIVEN)
    if l1:
        if any("decay" not in group for group in optimizer.param_groups):
            problem = f"found {l1:g}, but the optimizer of {recipe.name!r} has groups without the key decay"
            raise RecipeError("regularization.l1", problem, _GROUPS_AS_GIVEN)
        add_l1(optimizer, l1)
    return optimizer


def _sgd(recipe: OptimizerRecipe, groups: list[Group], kernels: Kernels) -> torch.optim.Optimizer:
    """torch's SGD with momentum.

        g <- g + weight_decay * w                   not with decoupled_weight_decay
        v <- momentum * v + g                       v is g in the first step
        w <- w - lr * v                             with nesterov: w - lr * (g + momentum * v)

    With `decoupled_weight_decay`, w is multiplied by 1 - lr * weight_decay before that, and the decay is not part of
    the momentum (SGDW: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 1).

    Source: Sutskever et al. 2013 (On the importance of initialization and momentum in deep learning), with the LR
    outside of v as in Goyal et al. 2017 (arXiv 1706.02677), equation 9.

    Differences in other implementations:
    apex's FusedSGD    none, except that wd_after_momentum can add the decay to v.
    timm               uses torch's SGD, with nesterov for its name sgd.
    TF2 (Keras)        has the LR inside the momentum, v <- momentum * v - lr * g: after a change of the LR its steps
                       differ. Its weight_decay is decoupled.

    >>> weight = torch.tensor([1.0], requires_grad=True)
    >>> recipe = OptimizerRecipe(momentum=0.5, weight_decay=0.1)
    >>> sgd = _sgd(recipe, [{"params": [weight], "decay": True}], "loop")
    >>> sgd.param_groups[0]["lr"] = 0.1
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([0.9])
    ...     sgd.step()  # g is 1.0, v is 1.0; then g is 0.99, v is 1.49
    >>> weight
    tensor([0.7510], requires_grad=True)
    """
    optimizer = torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=recipe.momentum,
        weight_decay=0.0 if recipe.decoupled_weight_decay else recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=kernels == "foreach",
        fused=kernels == "fused",
    )
    if recipe.decoupled_weight_decay:
        add_decoupled_decay(optimizer, recipe.weight_decay)
    return optimizer


def _lars(recipe: OptimizerRecipe, groups: list[Group], kernels: Kernels) -> Lars:
    return Lars(
        groups,
        lr=0.0,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        trust_coefficient=0.001 if recipe.trust_coefficient is None else recipe.trust_coefficient,
        epsilon=0.0 if recipe.epsilon is None else recipe.epsilon,
        lr_in_momentum=True if recipe.lr_in_momentum is None else recipe.lr_in_momentum,
        nesterov=recipe.nesterov,
        fused=kernels == "fused" and all(p.dtype is torch.float32 for group in groups for p in group["params"]),
    )


def _lamb(recipe: OptimizerRecipe, groups: list[Group], kernels: Kernels) -> Lamb:
    return Lamb(
        groups,
        lr=0.0,
        betas=DEFAULT_BETAS if recipe.betas is None else recipe.betas,
        weight_decay=recipe.weight_decay,
        epsilon=EPSILON if recipe.epsilon is None else recipe.epsilon,
    )


def _adamw(recipe: OptimizerRecipe, groups: list[Group], kernels: Kernels) -> torch.optim.Optimizer:
    """torch's AdamW. On a GPU its count of steps is there, too, so that a step can be captured.

    In step t:

        w <- w - lr * weight_decay * w
        m <- beta1 * m + (1 - beta1) * g          v <- beta2 * v + (1 - beta2) * g^2
        w <- w - lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2; their schedule multiplier is lr, so that the
    decay follows the LR. Adam: Kingma & Ba 2015, arXiv 1412.6980, algorithm 1. Epsilon is 1e-8, as in both.

    Differences in other implementations:
    apex's FusedAdam    the same formula (its default adam_w_mode).
    timm                its name adamw is torch's AdamW.
    TF2 (Keras)         epsilon is 1e-7 and is added to sqrt(v) before the bias of v is corrected.

    >>> weight = torch.tensor([1.0], requires_grad=True)
    >>> weight.grad = torch.tensor([5.0])
    >>> adamw = _adamw(OptimizerRecipe(name="adamw", weight_decay=0.5), [{"params": [weight], "decay": True}], "loop")
    >>> adamw.param_groups[0]["lr"] = 0.1
    >>> adamw.step()  # 1 - 0.1 * 0.5, minus 0.1: Adam's first update is the sign of g
    >>> weight
    tensor([0.8500], requires_grad=True)
    """
    return torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=DEFAULT_BETAS if recipe.betas is None else recipe.betas,
        eps=1e-8 if recipe.epsilon is None else recipe.epsilon,
        weight_decay=recipe.weight_decay,
        foreach=kernels != "fused",
        fused=kernels == "fused",
        capturable=groups[0]["params"][0].device.type == "cuda",
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

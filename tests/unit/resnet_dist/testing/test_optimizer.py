"""Every built-in optimizer follows its formula, written out in numpy; optimizers that are broken are found."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from resnet_dist.optim.factory import build_from_groups
from resnet_dist.recipe import rules
from resnet_dist.recipe.schema import OptimizerRecipe
from resnet_dist.testing import check_optimizer
from resnet_dist.testing.optimizer import Array, Formula

MOMENTUM, DECAY, L1 = 0.9, 0.01, 0.003
BETAS = (0.8, 0.95)


def norm(values: Array) -> float:
    return float(np.sqrt(np.sum(values * values)))


def sgd(
    w: Array, g: Array, state: dict[str, Any], lr: float, decays: bool, *, nesterov: bool, decoupled: bool
) -> Array:
    """torch's SGD; decoupled: SGDW, Loshchilov & Hutter 2019, algorithm 1."""
    decay = DECAY if decays else 0.0
    g = g if decoupled else g + decay * w
    m = state["m"] = MOMENTUM * state.get("m", 0.0) + g
    step = g + MOMENTUM * m if nesterov else m
    return w - lr * step - (lr * decay * w if decoupled else 0.0)


def lars(w: Array, g: Array, state: dict[str, Any], lr: float, decays: bool, *, inside: bool, nesterov: bool) -> Array:
    """You et al. 2017, equation 6; the momentum of Keras (inside) or of torch."""
    u = g
    if decays:
        u = 0.001 * norm(w) / (norm(g) + DECAY * norm(w)) * (g + DECAY * w)
    u = lr * u if inside else u
    m = state["m"] = MOMENTUM * state.get("m", 0.0) + u
    step = MOMENTUM * m + u if nesterov else m
    return w - (step if inside else lr * step)


def adam(w: Array, g: Array, state: dict[str, Any], lr: float, decays: bool, *, layerwise: bool) -> Array:
    """Loshchilov & Hutter 2019, algorithm 2 (AdamW); You et al. 2020, algorithm 2 (LAMB)."""
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * g
    v = state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * g * g
    epsilon = 1e-6 if layerwise else 1e-8
    u = m / (1 - BETAS[0] ** t) / (np.sqrt(v / (1 - BETAS[1] ** t)) + epsilon) + (DECAY * w if decays else 0.0)
    return w - lr * (norm(w) / norm(u) if layerwise and decays else 1.0) * u


# name -> keys of `optimizer`, factor of the LR, formula
CASES: dict[str, tuple[dict[str, Any], float, Formula]] = {
    "sgd": ({}, 1.0, partial(sgd, nesterov=False, decoupled=False)),
    "sgd, nesterov": ({"nesterov": True}, 1.0, partial(sgd, nesterov=True, decoupled=False)),
    "sgd, decoupled": ({"decoupled_weight_decay": True}, 1.0, partial(sgd, nesterov=False, decoupled=True)),
    "lars": ({}, 10.0, partial(lars, inside=True, nesterov=False)),
    "lars, nesterov": ({"nesterov": True}, 10.0, partial(lars, inside=True, nesterov=True)),
    "lars, lr outside": ({"lr_in_momentum": False}, 10.0, partial(lars, inside=False, nesterov=False)),
    "lars, lr outside, nesterov": (
        {"lr_in_momentum": False, "nesterov": True},
        10.0,
        partial(lars, inside=False, nesterov=True),
    ),
    "lamb": ({"betas": BETAS}, 1.0, partial(adam, layerwise=True)),
    "adamw": ({"betas": BETAS}, 1.0, partial(adam, layerwise=False)),
}


def made(
    groups: list[dict[str, Any]], *, momentum: float, weight_decay: float, kernels: Any = "foreach", **keys: Any
) -> torch.optim.Optimizer:
    recipe = OptimizerRecipe(momentum=momentum, weight_decay=weight_decay, **keys)
    return build_from_groups(recipe, groups, kernels)


@pytest.mark.parametrize("kernels", ["foreach", "fused"])
@pytest.mark.parametrize("case", CASES)
def test_every_built_in_optimizer_conforms(case: str, kernels: str) -> None:
    keys, scale, formula = CASES[case]
    arguments = {"name": case.partition(",")[0], "kernels": kernels, **keys}
    check_optimizer(
        made, arguments=arguments, momentum=MOMENTUM, weight_decay=DECAY, learning_rate=scale, formula=formula
    )


def test_no_built_in_optimizer_is_left_out() -> None:
    assert {case.partition(",")[0] for case in CASES} == set(rules.OPTIMIZER_NAMES)


# --- broken ones


class Own(torch.optim.Optimizer):
    """SGD with momentum; `fault` says what is wrong with it."""

    def __init__(self, groups: Any, *, momentum: float, weight_decay: float, fault: str = "") -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})
        self.momentum, self.fault = momentum, fault
        self.hidden: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr = self.param_groups[0]["lr"] if self.fault == "first lr" else group["lr"]
            lr = 0.1 if self.fault == "own lr" else lr
            for weight in group["params"]:
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
                if weight.grad is None and self.fault != "missing":
                    continue
                gradient += (0.1 if self.fault == "decays all" else group["weight_decay"]) * weight
                states = self.hidden if self.fault == "hidden" else self.state[weight]
                key: Any = weight if self.fault == "hidden" else "momentum_buffer"
                if self.fault == "shape":
                    self.state[weight]["norms"] = torch.zeros(7)
                states[key] = momentum = self.momentum * states.get(key, 0.0) + gradient
                factor = weight.norm() / momentum.norm().clamp_min(1e-3) if self.fault == "zero" else 1.0
                factor = 1 / weight.norm() if self.fault == "infinite" else factor
                weight += lr * momentum if self.fault == "ascent" else -lr * factor * momentum


@pytest.mark.parametrize(
    ("fault", "requirement"),
    [
        ("own lr", "moves with a learning rate of 0"),
        ("first lr", "must use the lr of the parameter's own group"),
        ("decays all", "moves with gradients of 0 and without weight decay"),
        ("missing", "which has no gradient, moves"),
        ("hidden", "goes on otherwise after loading the state"),
        ("shape", r"the state norms of 0.weight has shape \(7,\)"),
        ("zero", "a weight of 0 cannot move"),
        ("infinite", "a weight of 0 does not stay finite"),
        ("ascent", "the loss of a quadratic goes from"),
    ],
)
def test_what_is_broken_is_found(fault: str, requirement: str) -> None:
    with pytest.raises(AssertionError, match=requirement):
        check_optimizer(Own, arguments={"fault": fault})


def test_an_optimizer_that_decays_what_it_should_not_is_found() -> None:
    def forgets(groups: list[dict[str, Any]], *, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
        parameters = [parameter for group in groups for parameter in group["params"]]
        return torch.optim.SGD(parameters, momentum=momentum, weight_decay=weight_decay)

    with pytest.raises(AssertionError, match=r"0\.bias decays"):
        check_optimizer(forgets)


def test_another_formula_is_found() -> None:
    def other(w: Array, g: Array, state: dict[str, Any], lr: float, decays: bool) -> Array:
        return w - lr * g

    with pytest.raises(AssertionError, match=r"step 1: 0\.weight differs from the formula by"):
        check_optimizer(Own, formula=other)


def test_the_working_one_conforms_by_its_name() -> None:
    formula = partial(sgd, nesterov=False, decoupled=False)
    check_optimizer(Own, formula=formula, momentum=MOMENTUM, weight_decay=DECAY)
    check_optimizer("torch.optim:RMSprop")

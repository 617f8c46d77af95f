"""L1 against autograd, decoupled weight decay against SGDW, and steps that a loss scaler skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.engines.scaler import LossScaler
from resnet_dist.errors import RecipeError
from resnet_dist.optim import build_optimizer, decay_groups, write_learning_rate
from resnet_dist.recipe.schema import OptimizerRecipe

L1 = 0.01
NAMES = ("sgd", "lars", "lamb", "adamw")


def _model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).to(dtype)
    with torch.no_grad():
        model[3].weight[0] = 0.0  # where |w| has no derivative; torch's is 0
    return model


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, l1: float = 0.0, num_steps: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    decaying = next(group["params"] for group in decay_groups(model) if group["decay"])
    for step in range(num_steps):
        images = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype)
        loss = model(images).square().mean() + l1 * sum(weight.abs().sum() for weight in decaying)
        loss.backward()
        write_learning_rate(optimizer, 0.1 + 0.1 * step)
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_l1_is_the_gradient_of_the_absolute_weights_in_the_loss(name: str) -> None:
    recipe = OptimizerRecipe(name=name, weight_decay=0.01)
    model, other = _model(), _model()
    ours = _train(model, build_optimizer(recipe, model, l1=L1))
    autograd = _train(other, build_optimizer(recipe, other), L1)
    plain = _train(third := _model(), build_optimizer(recipe, third))
    for weight, expected in zip(ours, autograd, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(ours[0], plain[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_of_0_changes_no_bit(name: str) -> None:
    recipe = OptimizerRecipe(name=name)
    models = [_model(), _model()]
    found = [
        _train(model, build_optimizer(recipe, model, **more))
        for model, more in zip(models, ({}, {"l1": 0.0}), strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_l1_needs_groups_that_say_whether_they_decay() -> None:
    recipe = OptimizerRecipe(name="tests.unit.resnet_dist.optim.test_penalties:of_own_groups")
    with pytest.raises(RecipeError, match="groups without the key decay") as caught:
        build_optimizer(recipe, _model(), l1=L1)
    assert caught.value.key == "regularization.l1"


def of_own_groups(groups: Any, *, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for group in groups for parameter in group["params"]], lr=0.0)


def _decoupled(model: nn.Module, kernels: Any = "foreach") -> torch.optim.Optimizer:
    return build_optimizer(OptimizerRecipe(weight_decay=0.1, decoupled_weight_decay=True), model, kernels)


def test_decoupled_decay_is_sgdw() -> None:
    """Loshchilov & Hutter 2019, algorithm 1: the gradient is taken first, and the decay is not in the momentum."""
    model, other = _model(), _model()
    ours = _train(model, _decoupled(model))
    decaying = {id(weight) for group in decay_groups(other) if group["decay"] for weight in group["params"]}
    momenta = {parameter: torch.zeros_like(parameter) for parameter in other.parameters()}
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        rate = 0.1 + 0.1 * step
        other(torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)).square().mean().backward()
        with torch.no_grad():
            for weight, momentum in momenta.items():
                momentum.mul_(0.9).add_(weight.grad)
                weight.sub_(rate * momentum + (rate * 0.1 * weight if id(weight) in decaying else 0.0))
        other.zero_grad()
    for weight, expected in zip(ours, other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected.detach(), rtol=1e-12, atol=1e-14)


def test_decoupled_decay_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm.optim")
    model, other = _model(), _model()
    ours = _train(model, _decoupled(model))
    theirs = _train(other, timm.SGDW(decay_groups(other), lr=0.1, momentum=0.9, weight_decay=0.1))
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-14)


def test_the_fused_kernel_decays_as_well() -> None:
    models = [_model(torch.float32), _model(torch.float32)]
    found = [
        _train(model, _decoupled(model, kernels)) for model, kernels in zip(models, ("fused", "foreach"), strict=True)
    ]
    for weight, expected in zip(*found, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overflows", [True, False])
def test_a_step_that_is_skipped_neither_shrinks_weights_nor_pulls_them_to_0(overflows: bool) -> None:
    model = _model(torch.float32)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    recipe = OptimizerRecipe(weight_decay=0.1, decoupled_weight_decay=True)
    optimizer, scaler = build_optimizer(recipe, model, l1=L1), LossScaler(torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf if overflows else 0.0)
    scaler.scale(torch.ones(()))
    scaler.unscale(optimizer)
    write_learning_rate(optimizer, 0.5)
    skipped, _ = scaler.step(optimizer)
    after = list(model.parameters())
    assert skipped is overflows
    assert torch.equal(after[0], before[0]) is overflows
    assert torch.equal(after[1], before[1])  # a bias has neither


def test_a_rate_in_a_tensor_decays_as_a_number_does() -> None:
    weights = []
    for lr in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        model = _model()
        optimizer = _decoupled(model)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        weights.append(next(model.parameters()).detach())
    assert torch.equal(*weights)

"""The conformance suite for optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.optim.groups import decay_groups, write_learning_rate
from resnet_dist.recipe.references import load_function

# function(groups, momentum=..., weight_decay=..., **arguments) -> torch.optim.Optimizer, as for `optimizer.name`
MakeOptimizer = Callable[..., torch.optim.Optimizer]

Array = NDArray[np.float64]
# The formula of a step for one parameter: (weight, gradient, state, lr, decays) -> weight. `state` is empty before the
# first step, and is changed in place; `decays`: whether weight decay and trust ratios apply.
Formula = Callable[[Array, Array, dict[str, Any], float, bool], Array]

_RATES = (0.02, 0.05, 0.05, 0.03, 0.01, 0.02)  # by step; they differ, so that an optimizer with its own LR fails
_DESCENT_STEPS, _DESCENT_RATE = 200, 0.01
_TOLERANCE = 1e-12


def check_optimizer(
    make: MakeOptimizer | str,
    *,
    arguments: Mapping[str, Any] | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    learning_rate: float = 1.0,
    formula: Formula | None = None,
) -> None:
    """Check an optimizer, given as for `optimizer.name` of a config: a function, or its name `package.module:function`.

    Requirements, in float64 and float32: a step uses the `lr` of each group; with an LR of 0, or with gradients of 0
    and no weight decay, nothing moves; a parameter without a gradient stays; groups without decay do not shrink; a
    weight of 0 stays finite and can move; the loss of a quadratic falls; the state is tensors of the parameter's shape
    or 0-d, and another optimizer that loads it by parameter name goes on with the same bits.

    With `formula`, the path on a quadratic, 0.5 * a * (w - b)^2 in each element, is that of the formula to 1e-12 of the
    largest weight. `learning_rate` multiplies the rates of the check, which are 0.01 to 0.05; LARS needs about 10.

    Raises AssertionError that names the requirement.
    """
    function: MakeOptimizer = load_function("make", make) if isinstance(make, str) else make  # type: ignore[assignment]
    given = {} if arguments is None else dict(arguments)

    def built(model: nn.Module, decay: float = weight_decay) -> torch.optim.Optimizer:
        return function(decay_groups(model), momentum=momentum, weight_decay=decay, **given)

    for dtype in (torch.float64, torch.float32):
        _check_still(built, dtype, learning_rate)
        _check_zero_weight(built, dtype, learning_rate)
        _check_state(built, dtype, learning_rate)
    _check_rates(built, learning_rate)
    _check_descent(built, learning_rate)
    if formula is not None:
        _check_formula(built, formula, learning_rate)


Build = Callable[..., torch.optim.Optimizer]  # (model, weight decay)


def _model(dtype: torch.dtype) -> nn.Module:
    """Three layers: two weights that decay, and biases and a batch norm that do not."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(3, 4)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _quadratic(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(parameter, a, b) for each parameter: the loss is the sum of 0.5 * a * (w - b)^2."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        a = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        b = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        yield parameter, a.to(parameter.dtype), b.to(parameter.dtype)


def _step(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    for parameter, a, b in _quadratic(model):
        parameter.grad = a * (parameter.detach() - b)
    write_learning_rate(optimizer, learning_rate)
    optimizer.step()


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _check_still(build: Build, dtype: torch.dtype, scale: float) -> None:
    model = _model(dtype)
    before, optimizer = _copies(model), build(model)
    _step(optimizer, model, 0.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} moves with a learning rate of 0: use the group's lr"

    model = _model(dtype)
    optimizer = build(model, 0.0)
    for rate in _RATES:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        write_learning_rate(optimizer, rate * scale)
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} moves with gradients of 0 and without weight decay"

    model = _model(dtype)
    optimizer = build(model, 0.5)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number == 0 else torch.zeros_like(parameter)
    write_learning_rate(optimizer, 0.1)
    optimizer.step()
    after = _copies(model)
    first = next(iter(after))
    assert torch.equal(after[first], before[first]), f"{first}, which has no gradient, moves"
    for group in decay_groups(model):
        for name in () if group["decay"] else group["names"]:
            still = torch.equal(after[name], before[name])
            assert still, f"{name} decays: a group's own weight_decay, 0 here, replaces the one that is passed"


def _check_zero_weight(build: Build, dtype: torch.dtype, scale: float) -> None:
    model = _model(dtype)
    weight = next(model.parameters())
    with torch.no_grad():
        weight.zero_()
    optimizer = build(model)
    _step(optimizer, model, 0.01 * scale)
    assert torch.isfinite(weight).all(), "a weight of 0 does not stay finite"
    assert (weight != 0).any(), "a weight of 0 cannot move"


def _check_state(build: Build, dtype: torch.dtype, scale: float) -> None:
    model = _model(dtype)
    optimizer = build(model)
    half = len(_RATES) // 2
    for rate in _RATES[:half]:
        _step(optimizer, model, rate * scale)
    parameters = dict(model.named_parameters())
    state = {
        name: {key: value.clone() for key, value in own.items()}
        for name, own in state_by_name(model, optimizer).items()
    }
    for name, own in state.items():
        for key, value in own.items():
            fits = value.dim() == 0 or value.shape == parameters[name].shape
            assert fits, f"the state {key} of {name} has shape {tuple(value.shape)}: the parameter's, or none"
    resumed = _model(dtype)
    resumed.load_state_dict(model.state_dict())
    other = build(resumed)
    load_state_by_name(resumed, other, state)
    for rate in _RATES[half:]:
        _step(optimizer, model, rate * scale)
        _step(other, resumed, rate * scale)
    for name, parameter in resumed.named_parameters():
        same = torch.equal(parameter, parameters[name])
        assert same, f"{name} goes on otherwise after loading the state: all of it must be in optimizer.state"


def _check_rates(build: Build, scale: float) -> None:
    """A group whose LR is 0 stays, while others move."""
    model = _model(torch.float64)
    before, optimizer = _copies(model), build(model)
    for parameter, a, b in _quadratic(model):
        parameter.grad = a * (parameter.detach() - b)
    write_learning_rate(optimizer, 0.01 * scale)
    optimizer.param_groups[-1]["lr"] = 0.0
    optimizer.step()
    still = {id(parameter) for parameter in optimizer.param_groups[-1]["params"]}
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved != (id(parameter) in still), f"{name}: a step must use the lr of the parameter's own group"


def _check_descent(build: Build, scale: float) -> None:
    model = _model(torch.float64)
    optimizer = build(model, 0.0)

    def loss() -> float:
        return sum(float((0.5 * a * (w.detach() - b).square()).sum()) for w, a, b in _quadratic(model))

    before = loss()
    for step in range(_DESCENT_STEPS):
        _step(optimizer, model, _DESCENT_RATE * scale * (1 - step / _DESCENT_STEPS))
    after = loss()
    assert after < 0.9 * before, f"the loss of a quadratic goes from {before:.3g} to {after:.3g}"


def _check_formula(build: Build, formula: Formula, scale: float) -> None:
    model = _model(torch.float64)
    optimizer = build(model)
    decays = {name: group["decay"] for group in decay_groups(model) for name in group["names"]}
    problem = [(a.numpy(), b.numpy()) for _, a, b in _quadratic(model)]
    expected = {name: weight.numpy().copy() for name, weight in _copies(model).items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in expected}
    for number, rate in enumerate(_RATES, start=1):
        _step(optimizer, model, rate * scale)
        for (name, weight), (a, b) in zip(list(expected.items()), problem, strict=True):
            expected[name] = formula(weight, a * (weight - b), states[name], rate * scale, decays[name])
        for name, parameter in model.named_parameters():
            off = np.abs(parameter.detach().numpy() - expected[name]).max() / max(np.abs(expected[name]).max(), 1.0)
            assert off <= _TOLERANCE, f"step {number}: {name} differs from the formula by {off:.1e}"

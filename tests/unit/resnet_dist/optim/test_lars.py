"""LARS against a reference that is written out number by number, in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from resnet_dist.optim import Lars, squared_norms, trust_ratios, update_weights

STEPS = 30
SETTINGS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 2e-4, "trust_coefficient": 0.001, "epsilon": 0.0}
SHAPES = [(4, 3, 2), (5,), (2, 2)]  # two layers that are adapted, one parameter (5,) that is left out


def _rates() -> list[float]:
    """Warm-up, then decay: where the two forms differ."""
    return [10 * (k + 1) / 8 if k < 8 else 10 * (1 - (k - 8) / 22) ** 2 for k in range(STEPS)]


def _tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def _optimizer(weights: list[torch.Tensor], lr_in_momentum: bool, lr: float | torch.Tensor = 0.0, **more: Any) -> Lars:
    for weight in weights:
        weight.requires_grad_()
    groups = [{"params": [weights[0], weights[2]], "decay": True}, {"params": [weights[1]], "decay": False}]
    return Lars(groups, lr, lr_in_momentum=lr_in_momentum, **SETTINGS, **more)


def _step(optimizer: Lars, weights: list[torch.Tensor], k: int, lr: float) -> None:
    for weight, gradient in zip(weights, _tensors(100 + k, weights[0].dtype), strict=True):
        weight.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _reference(lr_in_momentum: bool, nesterov: bool = False) -> list[list[float]]:
    """Lists of numbers instead of tensors, one formula a line."""
    weights = [weight.flatten().tolist() for weight in _tensors(0)]
    momenta = [[0.0] * len(weight) for weight in weights]
    for k, lr in enumerate(_rates()):
        for layer, gradient in enumerate(_tensors(100 + k)):
            w, g, m = weights[layer], gradient.flatten().tolist(), momenta[layer]
            wd = 2e-4 if layer != 1 else 0.0
            w_norm, g_norm = math.hypot(*w), math.hypot(*g)
            trust = 0.001 * w_norm / (g_norm + wd * w_norm) if layer != 1 else 1.0
            for i in range(len(w)):
                update = trust * (g[i] + wd * w[i])
                if lr_in_momentum:
                    m[i] = 0.9 * m[i] + lr * update
                    w[i] = w[i] - (0.9 * m[i] + lr * update if nesterov else m[i])
                else:
                    m[i] = 0.9 * m[i] + update
                    w[i] = w[i] - lr * (0.9 * m[i] + update if nesterov else m[i])
    return weights


def _largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_thirty_steps_follow_the_written_out_formula(lr_in_momentum: bool, nesterov: bool) -> None:
    weights = _run(lr_in_momentum, _rates(), nesterov=nesterov)
    for weight, expected in zip(weights, _reference(lr_in_momentum, nesterov), strict=True):
        assert torch.allclose(weight.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def _run(
    lr_in_momentum: bool, rates: list[float], dtype: torch.dtype = torch.float64, **more: Any
) -> list[torch.Tensor]:
    weights = _tensors(0, dtype)
    optimizer = _optimizer(weights, lr_in_momentum, **more)
    for k, lr in enumerate(rates):
        _step(optimizer, weights, k, lr)
    return [weight.detach() for weight in weights]


def test_both_forms_agree_at_a_constant_learning_rate() -> None:
    assert _largest_difference(_run(True, [0.3] * STEPS), _run(False, [0.3] * STEPS)) < 1e-12


def test_the_forms_differ_while_the_learning_rate_changes() -> None:
    assert _largest_difference(_run(True, _rates()), _run(False, _rates())) > 1e-2


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_a_trust_ratio_it_is_torchs_sgd(nesterov: bool) -> None:
    weights, others = _tensors(0)[1:2], _tensors(0)[1:2]
    weights[0].requires_grad_()
    others[0].requires_grad_()
    groups = [{"params": weights, "decay": False}]
    optimizer = Lars(groups, 0.1, lr_in_momentum=False, weight_decay=0.5, nesterov=nesterov)
    sgd = torch.optim.SGD(others, lr=0.1, momentum=0.9, nesterov=nesterov)
    for k in range(5):
        weights[0].grad = others[0].grad = _tensors(100 + k)[1]
        optimizer.step()
        sgd.step()
    assert _largest_difference(weights, others) < 1e-15


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_the_fused_update_differs_in_rounding_only(lr_in_momentum: bool) -> None:
    """Also where lr * trust is far below 1, which torch gets as 1 minus its dampening, and above 1."""
    for factor in (1e-4, 1.0, 300.0):
        rates = [factor * rate for rate in _rates()]
        exact = _run(lr_in_momentum, rates)
        found = _run(lr_in_momentum, rates, torch.float32, fused=True)
        start = _tensors(0)
        for weight, expected, before in zip(found, exact, start, strict=True):
            # to the rounding of the weights, and to that of the path from the start
            off = (weight.double() - expected).abs().max()
            assert off < 1e-6 * expected.abs().max() + 1e-5 * (expected - before).abs().max()


def test_the_first_fused_momentum_is_the_scaled_gradient() -> None:
    """Torch's own SGD takes the first gradient unscaled."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer = Lars([weight], 1e-4, trust_coefficient=0.001, fused=True)  # trust is 0.0025
    optimizer.step()
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert momentum.tolist() == [0.0, pytest.approx(1e-4 * 0.0025 * 2.0, rel=1e-6)]


@pytest.mark.parametrize("more", [{"nesterov": True}, {"momentum": 0.0}])
def test_fused_falls_back_to_what_has_no_kernel(more: dict[str, Any]) -> None:
    settings = {"lr": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.5} | more
    results = []
    for fused in (False, True):
        weight = torch.tensor([3.0, 4.0], requires_grad=True)
        optimizer = Lars([weight], fused=fused, **settings)
        for gradient in ([1.0, 2.0], [0.0, -1.0]):
            weight.grad = torch.tensor(gradient)
            optimizer.step()
        results.append(weight.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_a_rate_in_a_tensor_is_that_of_a_number(lr_in_momentum: bool, nesterov: bool) -> None:
    weights = _tensors(0)
    rate = torch.zeros((), dtype=torch.float64)
    optimizer = _optimizer(weights, lr_in_momentum, rate, nesterov=nesterov)
    for k, lr in enumerate(_rates()):
        rate.fill_(lr)
        for weight, gradient in zip(weights, _tensors(100 + k), strict=True):
            weight.grad = gradient
        optimizer.step()
    assert _largest_difference(weights, _run(lr_in_momentum, _rates(), nesterov=nesterov)) < 1e-12


def test_trust_ratios_of_the_last_step_are_kept() -> None:
    weights = _tensors(0)
    optimizer = _optimizer(weights, True)
    assert optimizer.last_trust_ratios().tolist() == []
    for k in range(2):
        norms = [weight.detach().norm().item() for weight in weights]
        _step(optimizer, weights, k, 5.0)
        of_gradients = [gradient.norm().item() for gradient in _tensors(100 + k)]
        expected = [0.001 * norms[i] / (of_gradients[i] + 2e-4 * norms[i]) for i in (0, 2)]
        assert optimizer.last_trust_ratios().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_a_state_dict_goes_on_bit_for_bit(lr_in_momentum: bool) -> None:
    weights = _tensors(0)
    optimizer = _optimizer(weights, lr_in_momentum)
    for k in range(5):
        _step(optimizer, weights, k, 3.0 + k)
    resumed = [weight.detach().clone() for weight in weights]
    other = _optimizer(resumed, not lr_in_momentum)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for k in range(5, 10):
        _step(optimizer, weights, k, 3.0 + k)
        _step(other, resumed, k, 3.0 + k)
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))


def test_the_state_is_one_momentum_buffer_a_parameter() -> None:
    weights = _tensors(0, torch.float32)
    optimizer = _optimizer(weights, True)
    _step(optimizer, weights, 0, 1.0)
    for weight in weights:
        state = optimizer.state[weight]
        assert list(state) == ["momentum_buffer"]
        assert (state["momentum_buffer"].shape, state["momentum_buffer"].dtype) == (weight.shape, torch.float32)


def test_gradients_are_left_as_they_were() -> None:
    weights = _tensors(0)
    _step(_optimizer(weights, True), weights, 0, 1.0)
    assert all(torch.equal(w.grad, g) for w, g in zip(weights, _tensors(100), strict=True) if w.grad is not None)


def test_a_parameter_without_a_gradient_stays() -> None:
    weights = _tensors(0)
    optimizer = _optimizer(weights, True, lr=1.0)
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert not torch.equal(weights[0], _tensors(0)[0])
    assert torch.equal(weights[1], _tensors(0)[1])
    assert torch.equal(weights[2], _tensors(0)[2])


def _ratio(weight_norm: float, gradient_norm: float) -> float:
    norms = (torch.tensor([weight_norm], dtype=torch.float64), torch.tensor([gradient_norm], dtype=torch.float64))
    return trust_ratios(*norms, weight_decay=0.5, trust_coefficient=0.1, epsilon=1.0).item()


@pytest.mark.parametrize(("weight", "gradient"), [(4.0, 5.0), (0.5, 0.25)])
def test_the_trust_ratio_follows_its_formula(weight: float, gradient: float) -> None:
    assert _ratio(weight, gradient) == 0.1 * weight / (gradient + 0.5 * weight + 1.0)


@pytest.mark.parametrize("norms", [(0.0, 0.0), (0.0, 5.0), (4.0, 0.0)])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(norms: tuple[float, float]) -> None:
    assert _ratio(*norms) == 1.0


def test_a_zero_weight_moves_by_the_plain_gradient_and_stays_finite() -> None:
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weight.grad = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    Lars([weight], 0.5, weight_decay=0.1).step()
    assert weight.tolist() == [-0.5, 1.0, 0.0]


def test_a_zero_gradient_leaves_plain_weight_decay() -> None:
    weight = torch.tensor([2.0, -4.0], dtype=torch.float64, requires_grad=True)
    weight.grad = torch.zeros(2, dtype=torch.float64)
    Lars([weight], 0.5, weight_decay=0.25).step()
    assert weight.tolist() == [2.0 - 0.5 * 0.25 * 2.0, -4.0 + 0.5 * 0.25 * 4.0]


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_pieces_of_a_layer_move_as_the_whole_does(lr_in_momentum: bool) -> None:
    """What sharded optimizers rely on: norms add up over pieces, and the update needs nothing else of the layer."""
    settings: dict[str, Any] = {
        "learning_rate": 3.0,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "lr_in_momentum": lr_in_momentum,
    }
    whole, gradient = (tensor.flatten() for tensor in (_tensors(0)[0], _tensors(100)[0]))
    pieces = list(whole.clone().split([7, 17]))
    gradients = list(gradient.split([7, 17]))
    norms = [squared_norms(tensors).sum().reshape(1).sqrt() for tensors in (pieces, gradients)]
    ratio = trust_ratios(*norms, weight_decay=2e-4, trust_coefficient=0.001, epsilon=0.0)
    update_weights(pieces, gradients, [torch.zeros_like(p) for p in pieces], ratio.expand(2), **settings)

    weight = whole.clone().requires_grad_()
    weight.grad = gradient
    Lars([weight], 3.0, lr_in_momentum=lr_in_momentum, **SETTINGS).step()
    assert torch.allclose(torch.cat(pieces), weight, rtol=1e-15, atol=0)


def test_a_state_dict_of_an_earlier_version_has_no_nesterov() -> None:
    optimizer = _optimizer(_tensors(0), True)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["nesterov"]
    optimizer.load_state_dict(state)
    assert [group["nesterov"] for group in optimizer.param_groups] == [False, False]


def test_a_copy_steps_as_the_original() -> None:
    weights = _tensors(0)
    optimizer = _optimizer(weights, True)
    _step(optimizer, weights, 0, 1.0)
    copied = copy.deepcopy(optimizer)
    own = [weight for group in copied.param_groups for weight in group["params"]]
    _step(copied, [own[0], own[2], own[1]], 1, 1.0)
    _step(optimizer, weights, 1, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(weights, [own[0], own[2], own[1]], strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr", [0.1, torch.ones((), device="meta")])
def test_a_step_reads_nothing_back_from_the_device(lr: float | torch.Tensor, nesterov: bool) -> None:
    """On the meta device there is no value to read: .item(), or a branch on a tensor, would raise."""
    weight = torch.ones(3, device="meta", requires_grad=True)
    weight.grad = torch.ones(3, device="meta")
    optimizer = Lars([weight], lr, weight_decay=0.1, nesterov=nesterov)
    optimizer.step()
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].is_meta


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = torch.tensor([3.0], requires_grad=True)
    optimizer = Lars([weight], 0.1)

    def closure() -> float:
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert weight.item() < 3.0
    assert optimizer.step() is None


def test_the_defaults_of_the_settings() -> None:
    assert Lars([torch.zeros(1, requires_grad=True)]).defaults == {
        "lr": 0.0,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "trust_coefficient": 0.001,
        "epsilon": 0.0,
        "lr_in_momentum": True,
        "nesterov": False,
        "decay": True,
    }


def test_every_setting_but_the_trust_coefficient_may_be_zero() -> None:
    zeros: dict[str, Any] = {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "epsilon": 0.0}
    defaults = Lars([torch.zeros(1, requires_grad=True)], **zeros).defaults
    assert {name: defaults[name] for name in zeros} == zeros


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"weight_decay": -1e-4},
        {"epsilon": -1.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"trust_coefficient": 0.0},
        {"nesterov": True, "momentum": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lars([torch.zeros(1, requires_grad=True)], **wrong)

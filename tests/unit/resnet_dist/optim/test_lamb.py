"""LAMB; tests/unit/resnet_dist/testing/test_optimizer.py holds it against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from resnet_dist.optim import Lamb
from resnet_dist.optim.lamb import trust_ratios


def _run(optimizer_of: Any, num_steps: int, size: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = optimizer_of(weight)
    for _ in range(num_steps):
        weight.grad = torch.randn(size, generator=generator, dtype=torch.float64)
        optimizer.step()
    return weight.detach()


def test_without_decay_it_is_adam() -> None:
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95)}
    ours = _run(lambda w: Lamb([{"params": [w], "decay": False}], epsilon=1e-3, weight_decay=0.5, **settings), 6)
    adam = _run(lambda w: torch.optim.Adam([w], eps=1e-3, **settings), 6)
    assert torch.allclose(ours, adam, rtol=1e-13, atol=0)


def test_the_step_has_the_norm_of_the_weight_times_the_rate() -> None:
    before, after = (_run(lambda w: Lamb([w], 0.25, weight_decay=0.1), steps) for steps in (3, 4))
    assert (after - before).norm().item() == pytest.approx(0.25 * before.norm().item(), rel=1e-13)


def test_it_is_timms_without_clipping() -> None:
    timm = pytest.importorskip("timm.optim")
    ours = _run(lambda w: Lamb([w], 0.05, weight_decay=0.1), 8)
    settings: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "max_grad_norm": None}
    assert torch.allclose(ours, _run(lambda w: timm.Lamb([w], **settings), 8), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norms", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_ratio_is_1_where_a_norm_is_0(norms: tuple[float, float]) -> None:
    assert trust_ratios(*(torch.tensor([norm]) for norm in norms)).tolist() == [1.0]


def test_the_counts_of_steps_are_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optimizer = Lamb([weight], 0.1)
    optimizer.step()
    monkeypatch.setattr(torch, "zeros", None)
    optimizer.step()
    assert optimizer.state[weight]["step"].item() == 2.0


def test_a_late_parameter_has_its_own_count() -> None:
    early, late = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = Lamb([early, late], 0.1)
    early.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(late, torch.ones(2))
    early.grad = torch.ones(2)
    late.grad = torch.ones(2)
    optimizer.step()
    assert [optimizer.state[weight]["step"].item() for weight in (early, late)] == [2.0, 1.0]
    assert late.tolist() == pytest.approx([0.9, 0.9], rel=1e-6)  # the bias of the first step is corrected


def test_a_rate_in_a_tensor_is_that_of_a_number() -> None:
    rate = torch.tensor(0.05, dtype=torch.float64)
    ours = _run(lambda w: Lamb([w], rate, weight_decay=0.1), 8)
    assert torch.allclose(ours, _run(lambda w: Lamb([w], 0.05, weight_decay=0.1), 8), rtol=1e-13, atol=0)


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("lr", [0.1, torch.ones((), device="meta")])
def test_a_step_reads_nothing_back_from_the_device(lr: float | torch.Tensor, decay: bool) -> None:
    weight = torch.ones(3, device="meta", requires_grad=True)
    weight.grad = torch.ones(3, device="meta")
    optimizer = Lamb([{"params": [weight], "decay": decay}], lr, weight_decay=0.1)
    optimizer.step()
    optimizer.step()
    assert all(state.is_meta for state in optimizer.state[weight].values())


def test_the_state_is_two_moments_and_a_count() -> None:
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.tensor([1.0, 0.0, -1.0])
    optimizer = Lamb([weight], 0.1)
    optimizer.step()
    state = optimizer.state[weight]
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "exp_avg": (3,),
        "exp_avg_sq": (3,),
        "step": (),
    }
    assert torch.equal(weight.grad, torch.tensor([1.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"weight_decay": -1e-4}, {"epsilon": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lamb([torch.zeros(1, requires_grad=True)], **wrong)

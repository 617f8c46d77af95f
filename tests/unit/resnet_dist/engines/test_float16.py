"""LARS and clipping in float16: their norms are those of the gradients without the loss scale.

LARS hides a wrong scale, because |w| / |g| cancels it. Weight decay is therefore as large as the gradient here: the
ratio between the two is right only if the gradient is not scaled.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.engines.scaler import LossScaler
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.optim import Lars, decay_groups

BATCH, LEARNING_RATE = 6, 0.5
CLIPPING, WIDE = 0.05, 1000.0  # the norm of the gradient is near 2
ROUNDING = 0.002  # of the way of a weight; float16 rounds by 5e-4, and 5.4e-4 was the largest seen here


def model() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def step(trained: DdpEngine, seed: int) -> bool:
    """One step on the batch of `seed`; whether it was skipped."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 4, 4, generator=generator)
    return trained.step([MicroBatch(images, torch.randint(5, (BATCH,), generator=generator))], LEARNING_RATE).skipped


def engine(net: nn.Module, dtype: torch.dtype, max_norm: float | None) -> DdpEngine:
    optimizer = Lars(decay_groups(net), weight_decay=0.5, trust_coefficient=0.1, lr_in_momentum=False)
    settings: dict[str, Any] = {"batch_size": BATCH, "num_micro_batches": 1, "gradient_clipping": max_norm}
    autocast = dtype if dtype is torch.float16 else None
    return DdpEngine(net, optimizer, cross_entropy_sum, autocast_dtype=autocast, **settings)


def ways(dtype: torch.dtype, max_norm: float | None, num_steps: int = 2) -> dict[str, Tensor]:
    """How far each weight goes."""
    net = model()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    trained = engine(net, dtype, max_norm)
    assert not any(step(trained, seed) for seed in range(num_steps))
    return {name: weight.detach() - before[name] for name, weight in net.named_parameters()}


def gaps(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The distance between the two ways of each weight, as a part of the expected one."""
    return {name: ((found[name] - way).norm() / way.norm()).item() for name, way in expected.items()}


@pytest.mark.parametrize("max_norm", [None, WIDE, CLIPPING])
def test_lars_and_clipping_have_the_steps_of_float32(max_norm: float | None) -> None:
    assert max(gaps(ways(torch.float16, max_norm), ways(torch.float32, max_norm)).values()) < ROUNDING


def test_only_the_narrow_clipping_changes_a_step() -> None:
    """Otherwise the test above would not see it."""
    free = ways(torch.float32, None)
    assert max(gaps(ways(torch.float32, WIDE), free).values()) == 0
    assert min(gaps(ways(torch.float32, CLIPPING), free).values()) > 10 * ROUNDING


@pytest.mark.parametrize("max_norm", [WIDE, CLIPPING])
def test_a_norm_with_the_scale_in_it_would_be_seen_in_every_weight(
    max_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScaler, "unscale", lambda scaler, optimizer: None)  # torch's scaler does it after clipping
    found = gaps(ways(torch.float16, max_norm), ways(torch.float32, max_norm))
    assert min(found.values()) > 10 * ROUNDING


@pytest.mark.parametrize("max_norm", [None, WIDE])
def test_a_trust_ratio_with_the_scale_in_it_would_be_seen_in_every_weight(
    max_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_with_the_scale(scaler: LossScaler, optimizer: torch.optim.Optimizer) -> tuple[bool, dict[str, float]]:
        optimizer.step()
        return False, {}

    monkeypatch.setattr(LossScaler, "unscale", lambda scaler, optimizer: None)
    monkeypatch.setattr(LossScaler, "step", step_with_the_scale)
    found = gaps(ways(torch.float16, max_norm, num_steps=1), ways(torch.float32, max_norm, num_steps=1))
    assert min(found.values()) > 10 * ROUNDING


@pytest.mark.parametrize("max_norm", [None, CLIPPING])
@pytest.mark.parametrize("num_before", [0, 2])
def test_a_step_that_overflows_changes_neither_weights_nor_momentum(num_before: int, max_norm: float | None) -> None:
    nets = model(), model()
    overflowed, untouched = (engine(net, torch.float16, max_norm) for net in nets)
    for seed in range(num_before):
        assert [step(overflowed, seed), step(untouched, seed)] == [False, False]
    scaler = overflowed.scaler_state()
    overflowed.load_scaler_state({**scaler, "loss_scale": 2.0**100})  # finite losses, gradients that overflow
    assert step(overflowed, 7)
    assert overflowed.scaler_state()["num_skipped"] == 1
    overflowed.load_scaler_state(scaler)
    for seed in (num_before, num_before + 1):
        torch.testing.assert_close(overflowed.optimizer_state(), untouched.optimizer_state(), rtol=0, atol=0)
        torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=0, atol=0)
        assert [step(overflowed, seed), step(untouched, seed)] == [False, False]
    momenta = [tensor for state in overflowed.optimizer_state().values() for tensor in state.values()]
    assert len(momenta) == len(list(nets[0].parameters()))
    assert all(momentum.any() for momentum in momenta)

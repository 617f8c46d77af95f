"""The DDP engine in one process: what a step computes, with every setting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.engines.ddp import DdpEngine, DdpSettings
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models.loss import cross_entropy_sum

BATCH = 6


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).to(dtype)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 4, 4, dtype=torch.float64, generator=generator)
    return images.to(dtype), torch.randint(5, (BATCH,), generator=generator)


def engine(net: nn.Module, num_micro_batches: int = 1, **settings: Any) -> DdpEngine:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    return DdpEngine(
        net, optimizer, cross_entropy_sum, batch_size=BATCH, num_micro_batches=num_micro_batches, **settings
    )


def parts(images: Tensor, labels: Tensor, num: int) -> list[MicroBatch]:
    return [MicroBatch(*part) for part in zip(images.chunk(num), labels.chunk(num), strict=True)]


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3])
def test_a_step_is_that_of_the_mean_loss(num_micro_batches: int) -> None:
    ours, theirs = model(), model()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    trained = engine(ours, num_micro_batches)
    for seed in range(3):
        images, labels = batch(seed)
        sums = trained.step(parts(images, labels, num_micro_batches), 0.1)
        loss = nn.functional.cross_entropy(theirs(images), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None])
        optimizer.step()
        assert sums.loss.item() / BATCH == pytest.approx(loss.item(), rel=1e-13)
        assert sums.gradient_squared.sqrt().item() == pytest.approx(norm.item(), rel=1e-13)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-13, atol=1e-13)


def test_clipping_is_torch_s_and_the_norm_is_reported_unclipped() -> None:
    ours, theirs = model(), model()
    images, labels = batch()
    sums = engine(ours, gradient_clipping=0.01).step([MicroBatch(images, labels)], 0.1)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    nn.functional.cross_entropy(theirs(images), labels).backward()
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.01)
    optimizer.step()
    assert sums.gradient_squared.sqrt().item() == pytest.approx(norm.item(), rel=1e-13)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_another_number_of_micro_batches_is_refused(given: int) -> None:
    trained = engine(model(), num_micro_batches=2)
    images, labels = batch()
    with pytest.raises(ValueError, match=f"a step has 2 micro-batches, got {given}"):
        trained.step(parts(images, labels, given) if given else [], 0.1)


def test_a_compiled_step_is_the_same_step() -> None:
    plain, compiled = model(), model()
    settings = DdpSettings(compile_backend="aot_eager")  # the compiler's front, without minutes of C++
    for seed in range(2):
        for net, kind in ((plain, DdpSettings()), (compiled, settings)):
            engine(net, settings=kind).step([MicroBatch(*batch(seed))], 0.1)
    for own, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    assert list(plain.state_dict()) == list(compiled.state_dict())


class TestFloat16:
    def test_the_loss_is_scaled_and_the_gradient_norm_is_not(self) -> None:
        net, exact = model(torch.float32), model(torch.float32)
        images, labels = batch(dtype=torch.float32)
        scaled = engine(net, autocast_dtype=torch.float16).step([MicroBatch(images, labels)], 0.1)
        plain = engine(exact).step([MicroBatch(images, labels)], 0.1)
        ratio = scaled.gradient_squared.sqrt() / plain.gradient_squared.sqrt()
        assert ratio.item() == pytest.approx(1.0, rel=5e-3)  # ten bits of mantissa

    def test_a_step_that_overflows_is_skipped_and_counted(self) -> None:
        net = model(torch.float32)
        trained = engine(net, autocast_dtype=torch.float16)
        before = copy.deepcopy(net.state_dict())
        images, labels = batch(dtype=torch.float32)
        assert trained.step([MicroBatch(images * 1e6, labels)], 0.1).skipped
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert trained.scaler_state() == {"loss_scale": 32768.0, "growth_tracker": 0, "num_skipped": 1}
        assert not trained.step([MicroBatch(images, labels)], 0.1).skipped
        assert not all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())

    def test_a_step_reports_its_own_scale_and_every_skip_is_counted(self) -> None:
        trained = engine(model(torch.float32), autocast_dtype=torch.float16)
        trained.load_scaler_state({"loss_scale": 2.0**-148, "growth_tracker": 0, "num_skipped": 5})
        images, labels = batch(dtype=torch.float32)
        rows = [trained.step([MicroBatch(images * factor, labels)], 0.1).scaling for factor in (1e6, 1e6, 1e6, 1e6)]
        assert [row["loss_scale"] for row in rows] == [2.0**-148, 2.0**-149, 0.0, 0.0]  # it cannot fall any further
        assert [row["num_skipped"] for row in rows] == [6, 7, 8, 9]
        assert engine(model(torch.float32)).step([MicroBatch(images, labels)], 0.1).scaling == {}

    def test_the_scaler_goes_on_where_it_was(self) -> None:
        first = engine(model(torch.float32), autocast_dtype=torch.float16)
        images, labels = batch(dtype=torch.float32)
        for factor in (1e6, 1e6, 1.0):
            first.step([MicroBatch(images * factor, labels)], 0.1)
        second = engine(model(torch.float32), autocast_dtype=torch.float16)
        second.load_scaler_state(first.scaler_state())
        assert second.scaler_state() == first.scaler_state()
        assert first.scaler_state() == {"loss_scale": 16384.0, "growth_tracker": 1, "num_skipped": 2}

    def test_other_precisions_have_no_scaler(self) -> None:
        trained = engine(model(torch.float32), autocast_dtype=torch.bfloat16)
        assert trained.scaler_state() == {}
        assert not trained.skips_overflows


def test_bfloat16_computes_in_it_and_keeps_float32_weights() -> None:
    net = model(torch.float32)
    seen: list[torch.dtype] = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    engine(net, autocast_dtype=torch.bfloat16).step([MicroBatch(*batch(dtype=torch.float32))], 0.1)
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_a_loss_that_depends_on_no_parameter_has_gradients_of_zero() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, images: Tensor) -> Tensor:
            output: Tensor = self.inner(images).detach()
            return output

    net = Detached()
    before = copy.deepcopy(net.state_dict())
    assert engine(net).step([MicroBatch(*batch())], 0.1).gradient_squared == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


class PartlyUsed(nn.Module):
    """The loss does not depend on `unused`."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = model(), nn.Linear(2, 2).double()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.used(images)
        return output


def test_a_parameter_without_a_gradient_has_a_gradient_of_zero(caplog: pytest.LogCaptureFixture) -> None:
    net = PartlyUsed()
    before = net.unused.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1)
    trained = DdpEngine(net, optimizer, cross_entropy_sum, batch_size=6, num_micro_batches=1)
    for _ in range(2):
        trained.step([MicroBatch(*batch())], 0.5)
    # momentum d, weights w: d = 0.1 w, w -= 0.5 d; then d = 0.9 d + 0.1 w, w -= 0.5 d
    torch.testing.assert_close(net.unused.weight, before * (0.95 - 0.5 * (0.09 + 0.095)), rtol=1e-12, atol=0)
    assert [message for message in caplog.messages if "trainable parameters (unused.weight, unused.bias)" in message]
    assert len(caplog.messages) == 1

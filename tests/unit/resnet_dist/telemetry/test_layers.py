"""What is recorded of each layer, against hand-made numbers and autograd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.optim import Lars, decay_groups
from resnet_dist.telemetry.layers import LayerStatistics, NoLayers

BATCH = 6


class Net(nn.Module):
    """A convolution, a ReLU in place of its output, a classifier, and a parameter of no layer."""

    def __init__(self, *, checkpointed: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(16, 5)
        self.factor = nn.Parameter(torch.ones(1))
        self.checkpointed = checkpointed
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        if self.checkpointed:
            images = images.requires_grad_(self.checkpointed == "reentrant")
            reentrant = self.checkpointed == "reentrant"
            hidden: Any = checkpoint(self.first, images, use_reentrant=reentrant)  # type: ignore[no-untyped-call]
        else:
            hidden = self.first(images)
        return self.factor * self.fc(hidden.flatten(1))  # type: ignore[no-any-return]

    def first(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.conv(images), inplace=True)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (BATCH,), generator=generator)


def micro_batches(num: int) -> Iterator[MicroBatch]:
    images, labels = batch()
    return (MicroBatch(*part) for part in zip(images.chunk(num), labels.chunk(num), strict=True))


class Run:
    def __init__(self, net: nn.Module, num: int = 1, every: int = 1, **more: Any) -> None:
        self.net, self.num = net, num
        optimizer = more.pop("optimizer", None) or Lars(decay_groups(net), weight_decay=0.01)
        self.layers = LayerStatistics(net, optimizer, every_steps=every, batch_size=BATCH)
        loss_sum = self.layers.loss_sum(cross_entropy_sum)
        self.engine = DdpEngine(net, optimizer, loss_sum, batch_size=BATCH, num_micro_batches=num, **more)

    def step(self, step: int = 1) -> Mapping[str, Any] | None:
        self.layers.begin(step)
        sums = self.engine.step(micro_batches(self.num), 0.1)
        self.layers.reduce()
        return self.layers.end(step, sums)


def expected() -> dict[str, dict[str, float]]:
    """From autograd, for one whole batch."""
    net = Net()
    images, labels = batch()
    first = net.conv(images)
    last = net.fc(torch.relu(first).flatten(1))
    loss = cross_entropy_sum(net.factor * last, labels) / BATCH
    weights = {"conv": net.conv.weight, "fc": net.fc.weight, "factor": net.factor}
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), retain_graph=True), strict=True))
    of_outputs = dict(zip(("conv", "fc"), torch.autograd.grad(loss, [first, last]), strict=True))
    found: dict[str, dict[str, float]] = {}
    for name, weight in weights.items():
        norm, gradient = weight.norm().item(), gradients[name].norm().item()
        ratio = 0.001 * norm / (gradient + 0.01 * norm)
        found[name] = {"weight_norm": norm, "gradient_norm": gradient, "trust_ratio": ratio}
    for name, output in (("conv", first), ("fc", last)):
        found[name]["activation_std"] = output.std(correction=0).item()
        found[name]["output_gradient_std"] = of_outputs[name].std(correction=0).item()
    return found


def assert_close(found: Mapping[str, Mapping[str, float]], wanted: Mapping[str, Mapping[str, float]]) -> None:
    assert {name: set(numbers) for name, numbers in found.items()} == {name: set(own) for name, own in wanted.items()}
    for name, numbers in wanted.items():
        assert found[name] == pytest.approx(numbers, rel=1e-12), name


@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_record_has_the_numbers_of_the_whole_batch(num: int) -> None:
    record = Run(Net(), num).step()
    assert record is not None
    assert (record["kind"], record["step"]) == ("layers", 1)
    assert_close(record["layers"], expected())


def test_gradients_are_those_before_clipping() -> None:
    record = Run(Net(), gradient_clipping=1e-3).step()
    assert record is not None
    wanted = expected()
    for name, numbers in record["layers"].items():
        assert numbers["gradient_norm"] == pytest.approx(wanted[name]["gradient_norm"], rel=1e-12)
        assert numbers["trust_ratio"] > wanted[name]["trust_ratio"]  # of what the optimizer gets


@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
def test_activation_checkpointing_changes_nothing(kind: str) -> None:
    record = Run(Net(checkpointed=kind)).step()
    assert record is not None
    assert_close(record["layers"], expected())


def test_steps_1_and_every_third_are_recorded_and_others_have_no_hooks() -> None:
    run = Run(Net(), every=3)
    found = []
    for step in range(1, 8):
        run.layers.begin(step)
        hooks = len(run.net.conv._forward_hooks)
        sums = run.engine.step(micro_batches(1), 0.1)
        run.layers.reduce()
        found.append((hooks, run.layers.end(step, sums) is not None))
    assert found == [(1, True), (0, False), (1, True), (0, False), (0, False), (1, True), (0, False)]
    assert not run.net.conv._forward_hooks


def test_observing_changes_no_bit() -> None:
    observed, plain = Run(Net()), Run(Net(), every=100)
    for step in range(2, 5):
        assert observed.step(step) is not None
        assert plain.step(step) is None
    for ours, theirs in zip(observed.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_frozen_layer_has_activations_only() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    record = Run(net).step()
    assert record is not None
    assert set(record["layers"]["conv"]) == {"activation_std"}
    assert "gradient_norm" in record["layers"]["fc"]


def test_other_optimizers_have_no_trust_ratio() -> None:
    net = Net()
    record = Run(net, optimizer=torch.optim.SGD(decay_groups(net), lr=0.1)).step()
    assert record is not None
    wanted = expected()
    for numbers in wanted.values():
        del numbers["trust_ratio"]
    assert_close(record["layers"], wanted)


def test_a_users_optimizer_may_have_groups_of_its_own() -> None:
    net = Net()
    record = Run(net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)).step()
    assert record is not None
    assert record["layers"]["conv.bias"]["gradient_norm"] > 0
    assert record["layers"]["conv"]["weight_norm"] == pytest.approx(expected()["conv"]["weight_norm"])


def test_a_number_that_is_not_finite_is_recorded_as_such() -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight[0, 0] = math.nan
    record = Run(net).step()
    assert record is not None
    assert math.isnan(record["layers"]["fc"]["activation_std"])
    assert math.isfinite(record["layers"]["conv"]["activation_std"])


def test_float16_gradients_are_those_of_the_unscaled_loss() -> None:
    net = Net().float()
    run = Run(net, autocast_dtype=torch.float16)
    run.layers.begin(1)
    images, labels = batch()
    sums = run.engine.step([MicroBatch(images.float(), labels)], 0.1)
    run.layers.reduce()
    record = run.layers.end(1, sums)
    assert record is not None
    for name, numbers in expected().items():
        for key in ("gradient_norm", "activation_std", "output_gradient_std"):
            if key in numbers:
                assert record["layers"][name][key] == pytest.approx(numbers[key], rel=1e-2), (name, key)


def test_without_records_nothing_is_done() -> None:
    layers = NoLayers()
    layers.begin(1)
    layers.reduce()
    assert layers.end(1, None) is None  # type: ignore[arg-type, func-returns-value]

"""The ZeRO engine in one process: errors, warnings and side effects. Its curve is tested in tests/distributed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from resnet_dist.engines import zero
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.engines.zero import ZeroEngine
from resnet_dist.errors import MissingPackage, RecipeError
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.optim import Lars, decay_groups

CLASSES, BATCH_SIZE = 3, 6

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one process; a new one for each test."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net() -> nn.Module:
    torch.manual_seed(0)
    # a 1 × 1 kernel in channels-last memory is contiguous according to torch, although its strides are not
    convolutions = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU())
    layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, CLASSES))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def lars(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return Lars(groups, weight_decay=0.01, trust_coefficient=0.1)


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


class Rows(torch.optim.Optimizer):
    """A user's optimizer that keeps one number a row, so it needs to know where rows end."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["rows"] = torch.zeros(3)


class Signs(torch.optim.Optimizer):
    """A user's elementwise optimizer."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def engine(stage: int, make: MakeOptimizer = lars, num_micro_batches: int = 1, **settings: Any) -> ZeroEngine:
    module = net()
    settings = {"batch_size": BATCH_SIZE, "num_micro_batches": num_micro_batches, "stage": stage, **settings}
    return ZeroEngine(module, make(decay_groups(module)), cross_entropy_sum, **settings)


def micro_batches(count: int = 1, seed: int = 0) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH_SIZE, 3, 4, 4, generator=generator)
    labels = torch.randint(CLASSES, (BATCH_SIZE,), generator=generator)
    return [MicroBatch(*parts) for parts in zip(images.chunk(count), labels.chunk(count), strict=True)]


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # float32, in another memory layout


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("make", [sgd, lars])
@pytest.mark.parametrize("stage", zero.STAGES)
def test_one_worker_trains_as_under_ddp(stage: int, make: MakeOptimizer) -> None:
    module = net()
    settings: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_micro_batches": 2, "gradient_clipping": 0.5}
    theirs = DdpEngine(module, make(decay_groups(module)), cross_entropy_sum, **settings)
    ours = engine(stage, make, **settings)
    for step in range(5):
        sums = [e.step(micro_batches(2, step), 0.1) for e in (ours, theirs)]
        close(*(torch.stack([s.loss, s.num_correct, s.gradient_squared]) for s in sums))
    close(ours.module.state_dict(), module.state_dict())
    close(dict(ours.optimizer_state()), dict(theirs.optimizer_state()))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", zero.STAGES)
def test_a_saved_state_goes_on_with_the_same_bits(stage: int) -> None:
    first = engine(stage)
    for step in range(3):
        first.step(micro_batches(seed=step), 0.1)
    weights = {name: value.clone() for name, value in first.module.state_dict().items()}
    saved = first.optimizer_state()
    module = net()
    module.load_state_dict(weights)
    second = ZeroEngine(
        module, lars(decay_groups(module)), cross_entropy_sum, batch_size=BATCH_SIZE, num_micro_batches=1, stage=stage
    )
    second.load_optimizer_state(saved)
    for one in (first, second):
        one.step(micro_batches(seed=3), 0.1)
    for name, value in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value), name


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", zero.STAGES)
def test_a_gradient_that_is_not_finite_shows_in_the_weights_as_under_ddp(stage: int) -> None:
    """DeepSpeed itself would drop the step and go on."""
    ours = engine(stage)
    [batch] = micro_batches()
    sums = ours.step([MicroBatch(batch.images * torch.inf, batch.labels)], 0.1)
    assert not sums.gradient_squared.isfinite()
    assert all(parameter.isnan().any() for parameter in ours.module.parameters())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", zero.STAGES)
@pytest.mark.parametrize("given", [0, 1, 3])
def test_another_number_of_micro_batches_is_refused(stage: int, given: int) -> None:
    with pytest.raises(ValueError, match=f"a step has 2 micro-batches, got {given}"):
        engine(stage, num_micro_batches=2).step(micro_batches(given) if given else [], 0.1)


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"ZeRO needs a process group.*init_process_group first"):
        engine(1)


@pytest.mark.usefixtures("group")
def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingPackage) as error:
        engine(1)
    assert error.value.key == "engine.name"
    assert "pip install 'resnet-launcher[deepspeed]'" in str(error.value)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adafactor, type("MyLars", (Lars,), {})])
def test_an_optimizer_that_needs_whole_tensors_is_refused_where_they_are_cut(kind: Any) -> None:
    with pytest.raises(RecipeError, match=rf"optimizer.name: \S+\.{kind.__name__} needs whole tensors"):
        engine(1, lambda groups: kind(groups, lr=0.1))
    engine(0, lambda groups: kind(groups, lr=0.1)).step(micro_batches(), 0.1)


@pytest.mark.usefixtures("group")
def test_a_users_optimizer_gets_one_warning_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    ours = engine(2, lambda groups: Signs(groups, {"lr": 0.0}))
    before = {name: value.clone() for name, value in ours.module.named_parameters()}
    for step in range(2):
        ours.step(micro_batches(seed=step), 0.5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{Signs.__module__}.Signs works on flat shards of the parameters" in caplog.text
    for name, value in ours.module.named_parameters():
        moved = (value.detach() - before[name]).abs()
        close(2 * moved, (2 * moved).round())  # by -0.5, 0 or 0.5, twice


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("make", [sgd, lars, lambda groups: torch.optim.AdamW(groups)])
def test_known_optimizers_get_none(caplog: pytest.LogCaptureFixture, make: MakeOptimizer) -> None:
    engine(1, make).step(micro_batches(), 0.1)
    assert caplog.records == []


@pytest.mark.usefixtures("group")
def test_an_optimizer_whose_state_knows_shapes_is_refused_after_its_first_step() -> None:
    with pytest.raises(RecipeError, match=r"optimizer.name: Rows keeps rows of shape \(3,\) for \d+ elements"):
        engine(1, lambda groups: Rows(groups, {"lr": 0.0})).step(micro_batches(), 0.1)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", [1, 2])
def test_another_layout_of_partitions_is_found_when_it_is_bound(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """As a later DeepSpeed might have it: the parameters of a group in another order."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    engine(stage)
    built = DeepSpeedZeroOptimizer.__init__

    def built_backwards(self: Any, *arguments: Any, **settings: Any) -> None:
        built(self, *arguments, **settings)
        self.single_partition_of_fp32_groups[0].data = self.single_partition_of_fp32_groups[0].data.flip(0)

    monkeypatch.setattr(DeepSpeedZeroOptimizer, "__init__", built_backwards)
    message = (
        r"engine.name: DeepSpeed \d\S+ does not lay out .*: the weights of 0.weight are at another place.*0\.19\.8"
    )
    with pytest.raises(RecipeError, match=message):
        engine(stage)


@pytest.mark.usefixtures("group")
def test_a_deepspeed_without_what_is_read_of_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    built = DeepSpeedZeroOptimizer.__init__

    def built_otherwise(self: Any, *arguments: Any, **settings: Any) -> None:
        built(self, *arguments, **settings)
        del self.averaged_gradients

    monkeypatch.setattr(DeepSpeedZeroOptimizer, "__init__", built_otherwise)
    with pytest.raises(RecipeError, match="its optimizer has no averaged_gradients"):
        engine(1)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", zero.STAGES)
def test_nothing_is_printed_and_the_environment_stays_as_it_was(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = dict(os.environ)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine(stage).step(micro_batches(), 0.1)
    assert caught == []
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before


@pytest.mark.usefixtures("group")
def test_autocast_applies_to_the_model_and_not_to_weights_or_the_process() -> None:
    seen: list[Tensor] = []
    ours = engine(1, autocast_dtype=torch.bfloat16)
    ours.module[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    ours.step(micro_batches(), 0.1)
    assert [output.dtype for output in seen] == [torch.bfloat16]
    assert {value.dtype for value in ours.module.parameters()} == {torch.float32}
    ours.module(micro_batches()[0].images)
    assert seen[1].dtype is torch.float32


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("stage", zero.STAGES)
def test_there_is_no_loss_scale_to_remember(stage: int) -> None:
    ours = engine(stage)
    assert ours.scaler_state() == {}
    ours.load_scaler_state({})

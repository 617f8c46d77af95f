"""No step makes the host wait for a GPU.

Counted here, without a GPU, by the operations that would: those that bring a number to the host, those whose result has
a size that depends on its values, and copies of new host data to the device. Not seen are waits inside one kernel.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_dist.build import whole_model
from resnet_dist.data import Index
from resnet_dist.data.loader import BadImage, HostBatch
from resnet_dist.engines.factory import build_engine
from resnet_dist.models import span_norm
from resnet_dist.models.loss import loss_of
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import OPERATORS, Spans
from resnet_dist.optim import build_optimizer, sgd_kernels
from resnet_dist.recipe.batch_layout import BatchLayout, SpanGroup
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    LossRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Precision,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
    SpeedRecipe,
)
from resnet_dist.telemetry.step_totals import PendingTotals, StepExchange, StepTotals
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.device import ToDevice
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.leaving_out import LeavingOut
from resnet_dist.training.masks import add_masks, drawing
from tests.cuda_batch_norm import cuda_kernels

CPU = torch.device("cpu")
BATCH, STEPS = 16, 10
TALLIES = (16, 2**32 - 1, 7, 0, 0, 0)  # of the ledger

WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), int(), bool(), `if tensor:`
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",  # and below: the result's size is on the device
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
    "aten::lift_fresh",  # torch.tensor(...): host data that would have to be copied from memory that is not pinned
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait; an index by a mask counts as `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, _, overload = str(func.name()).partition(".")
        if name in OPERATORS:  # of ours: look inside
            with self:
                return OPERATORS[name](*args)
        if name in WAITING or f"{name}.{overload}" in WAITING:
            self.found[name] += 1
        if name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_"):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.found["aten::nonzero"] += 1
        return func(*args, **(kwargs or {}))


def recipe_of(
    optimizer: Literal["sgd", "lars"],
    span: int | Literal["global", "worker"] = "global",
    clipping: float | None = None,
    num_micro_batches: int = 1,
    precision: Precision = "float32",
) -> Recipe:
    return Recipe(
        data=DataRecipe(root="none", resolution=8),
        batch=BatchRecipe(size=BATCH, num_micro_batches=num_micro_batches),
        duration=Duration(Fraction(STEPS), "steps"),
        schedule=ScheduleRecipe(peak_lr=0.1, decay="constant"),
        model=ModelRecipe(name="resnet20", num_classes=5),
        batch_norm=BatchNormRecipe(span=span),
        optimizer=OptimizerRecipe(name=optimizer, weight_decay=1e-4, gradient_clipping=clipping),
        precision=precision,
        regularization=RegularizationRecipe(label_smoothing=0.1, dropout=0.1, stochastic_depth=0.1),
        # on a GPU `auto` is foreach; on this CPU it would be fused
        speed=SpeedRecipe(sgd_kernel="foreach"),
    )


class Run:
    """A recipe's real parts on one worker, and what the trainer does with them at each step."""

    def __init__(self, recipe: Recipe) -> None:
        parts = recipe.batch.parts
        model = whole_model(recipe, Spans(BatchLayout(BATCH, parts), 0, recipe.batch_norm.span), CPU)
        masks = add_masks(model, recipe)
        kernels, l1 = sgd_kernels(recipe, torch.device("cpu")), recipe.regularization.l1
        optimizer = build_optimizer(recipe.optimizer, model, kernels, l1)
        loss_sum = loss_of(recipe, np.arange(10) % 3, CPU)
        self.engine = build_engine(recipe, model, optimizer, loss_sum)
        self.exchange = StepExchange(RunningStatistics(model), CPU, BATCH, len(TALLIES))
        self.average = WeightAverage(model, decay=0.9)
        self.to_device = drawing(masks, ToDevice(recipe, CPU, training=True))
        self.size = BATCH // parts
        self.batches = [self.batch(number) for number in range(parts)]
        self.to_device(self.batches[0])  # the channels' mean and deviation are copied once

    def batch(self, number: int) -> HostBatch:
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(256, (self.size, 8, 8, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        labels = torch.randint(5, (self.size,), generator=generator)
        return HostBatch(images, labels, torch.arange(self.size), checksum=number)

    def step(self, number: int) -> PendingTotals:
        micro_batches = map(self.to_device, self.batches)
        sums = self.engine.step(micro_batches, learning_rate=0.1)
        finished = self.exchange.finish(number, sums, local_step_time_s=0.5, checksum=number, tallies=TALLIES)
        if not sums.skipped:
            self.average.update(number)
        return finished


def waits_of(run: Run) -> tuple[Counter[str], list[StepTotals]]:
    """What ten steps would have waited for, beside reading the totals, and the totals."""
    with Waits() as waits:
        pending = [run.step(number) for number in range(STEPS)]
    return waits.found, [totals.read() for totals in pending]


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("clipping", [None, 0.5])
@pytest.mark.parametrize("span", ["global", 8, "worker"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_no_step_waits(
    optimizer: Literal["sgd", "lars"],
    span: int | Literal["global", "worker"],
    clipping: float | None,
    num_micro_batches: int,
) -> None:
    if span == "global" and num_micro_batches > 1:
        span = BATCH // num_micro_batches
    found, totals = waits_of(Run(recipe_of(optimizer, span, clipping, num_micro_batches)))
    assert found == {}
    assert [total.step for total in totals] == list(range(STEPS))
    assert totals[-1].loss < totals[0].loss  # they were steps


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "lars", "nesterov": True},
        {"name": "lars", "lr_in_momentum": False, "lr_factors": {"layer1": 0.1}},
        {"name": "lamb"},
        {"name": "sgd", "decoupled_weight_decay": True},
    ],
)
def test_no_step_of_another_optimizer_waits(keys: dict[str, Any]) -> None:
    recipe = recipe_of("sgd")
    regularization = replace(recipe.regularization, l1=1e-4)
    found, totals = waits_of(
        Run(replace(recipe, optimizer=OptimizerRecipe(weight_decay=1e-4, **keys), regularization=regularization))
    )
    assert found == {}
    assert bool(totals[-1].trust_ratios) is (keys["name"] != "sgd")


def test_no_step_of_adamw_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(replace(recipe_of("sgd"), optimizer=OptimizerRecipe(name="adamw", weight_decay=1e-4)))
    adam = sys.modules["torch.optim.adam"]  # torch.optim hides it
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda supports_xla: ["cpu"])
    for group in run.engine._optimizer.param_groups:  # type: ignore[attr-defined]
        group["capturable"] = True  # as it is built for a GPU
    found, _ = waits_of(run)
    assert found == {"aten::lift_fresh": 2 * STEPS}  # by group: a 1, which torch makes for counts on a CPU only


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_no_step_waits_where_images_are_erased_and_mixed(loss: str) -> None:
    changes = RegularizationRecipe(label_smoothing=0.1, mixup=0.2, cutmix=1.0, random_erasing=0.5)
    weighted = LossRecipe(name=loss, class_weights="balanced", target_threshold=0.2 if loss == "bce" else None)
    found, _ = waits_of(Run(replace(recipe_of("sgd"), regularization=changes, loss=weighted)))
    # The numbers for erasing and mixing are made on the host, and copied from pinned memory as the images are.
    assert found == {"aten::lift_fresh": 2 * STEPS}


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_no_step_waits_under_autocast(optimizer: Literal["sgd", "lars"]) -> None:
    found, _ = waits_of(Run(recipe_of(optimizer, precision="bfloat16")))
    assert found == {}


@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_waits_where_spans_are_exchanged(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(recipe_of("sgd"))
    spans = next(layer.spans for layer in run.engine.module.modules() if hasattr(layer, "spans"))
    spans.span_size = 2 * BATCH  # shared with a second worker, which has the same numbers
    spans.join(SpanGroup(range(2), range(2 * BATCH)), object(), BatchLayout(2 * BATCH, world_size=2), 0)
    monkeypatch.setattr(spans, "_checked", False)  # as on a GPU after the first forward pass
    both = lambda gathered, message, group: gathered.view(2, -1).copy_(message.flatten())  # noqa: E731
    monkeypatch.setattr("resnet_dist.models.spans.dist.all_gather_single", both)
    with cuda_kernels(), pytest.MonkeyPatch.context() as inner:  # undone before the kernels are
        if compiled:  # what the compiler traces, here not compiled
            inner.setattr(torch.compiler, "is_compiling", lambda: True)
            inner.setattr(span_norm, "_has_cuda_kernels", lambda input: False)
            inner.setattr(span_norm, "on_gpu", lambda tensor: True)
        found, _ = waits_of(run)
    assert found == {}


def leaving_out(run: Run) -> LeavingOut:
    sizes, names = np.full(BATCH, 8), tuple(f"{row}.jpg" for row in range(BATCH))
    index = Index("none", ("c",), names, np.zeros(BATCH, np.int64), sizes, sizes)
    bad = BadImages(DataRecipe(root="none", on_error="replace", max_bad_images=9), (index, index))
    spans = next(layer.spans for layer in run.engine.module.modules() if hasattr(layer, "spans"))
    found = LeavingOut(bad, BatchLayout(BATCH), 0, spans, CPU, compiled=False)
    run.to_device = found.applied(run.to_device)
    run.engine._loss_sum = found.loss_sum(run.engine._loss_sum)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("span", ["global", 8])
def test_no_step_waits_that_might_have_had_broken_samples_and_none_with_some_asks_the_device(
    span: int | Literal["global"],
) -> None:
    run = Run(recipe_of("sgd", span))
    agreed = leaving_out(run).agreed
    whole = run.batches
    with Waits() as waits:
        for number in range(STEPS):
            run.batches = list(agreed(iter(whole)))
            run.step(number)
    assert waits.found == {}
    with Waits() as waits:
        run.batches = list(agreed(iter([replace(whole[0], broken={3: BadImage("3.jpg", "is bad")})])))
        run.step(STEPS)
    assert set(waits.found) == {"aten::lift_fresh"}  # what is left, from the host to the device


def test_float16_asks_twice_a_step_whether_gradients_overflowed_and_what_the_scale_is() -> None:
    found, _ = waits_of(Run(recipe_of("sgd", precision="float16")))
    assert found == {"aten::_local_scalar_dense": 2 * STEPS}


def losses(run: Run, read_every: int) -> Iterator[float]:
    for number in range(STEPS):
        pending = run.step(number)
        if number % read_every == 0:
            yield pending.read().loss


def test_reading_totals_waits_for_their_copy_alone() -> None:
    run = Run(recipe_of("sgd"))
    with Waits() as waits:
        assert len(list(losses(run, read_every=1))) == STEPS
    assert waits.found == {}  # on a GPU the copy is in pinned memory, and an event says when it is complete


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x + torch.tensor([1.0, 2.0]),
    ],
)
def test_the_count_finds_what_waits(wait: Any) -> None:
    with Waits() as waits:
        wait(torch.ones(2))
    assert sum(waits.found.values()) == 1

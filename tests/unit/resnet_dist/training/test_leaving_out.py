"""One worker; tests/distributed/test_replace.py compares whole runs on several with plain torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnet_dist.data import Index
from resnet_dist.data.loader import BadImage, HostBatch
from resnet_dist.engines.ddp import DdpEngine, DdpSettings
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DataError
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.leaving_out import LeavingOut

CPU = torch.device("cpu")
BATCH, PARTS, CLASSES = 8, 2, 3
DATA = DataRecipe(root="/data", on_error="replace", max_bad_images=10)


class World:
    """A small network with batch norm over spans of 2, in steps of 2 micro-batches of 4."""

    def __init__(self, settings: DdpSettings | None = None, data: DataRecipe = DATA, parts: int = PARTS) -> None:
        sizes, layout = np.full(20, 8), BatchLayout(BATCH, parts)
        names = tuple(f"train/{row}.jpg" for row in range(20))
        index = Index("/data", ("c",), names, np.zeros(20, np.int64), sizes, sizes)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, CLASSES))
        spans = Spans(layout, 0, 2)
        self.net = use_spans(net.double(), spans)
        self.statistics = RunningStatistics(self.net)
        self.bad = BadImages(data, (index, index))
        compiled = settings is not None and settings.compile_backend is not None
        self.leaving_out = LeavingOut(self.bad, layout, 0, spans, CPU, compiled=compiled)
        self.seen: list[int] = []
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        loss_sum = self.leaving_out.loss_sum(self.loss_sum)
        self.engine = DdpEngine(
            self.net, optimizer, loss_sum, batch_size=BATCH, num_micro_batches=parts, settings=settings
        )
        self.to_device = self.leaving_out.applied(self.move)

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.seen.append(len(targets))
        return cross_entropy_sum(logits, targets)

    def move(self, batch: HostBatch) -> MicroBatch:
        good = batch.good()
        return MicroBatch(batch.images[good], batch.labels[good], len(batch.broken))

    def step(self, batches: Iterable[HostBatch]) -> float:
        agreed = self.leaving_out.agreed(iter(batches))
        loss = float(self.engine.step(map(self.to_device, agreed), 0.1).loss) / BATCH
        self.statistics.update(self.statistics.sums())
        return loss


def batches(*broken: int, parts: int = PARTS) -> Iterator[HostBatch]:
    """A step; `broken`: positions."""
    generator = torch.Generator().manual_seed(1)
    size = BATCH // parts
    for first in range(0, BATCH, size):
        images = torch.randn(size, 3, 6, 6, dtype=torch.float64, generator=generator)
        rows = {p - first: BadImage(f"train/{p}.jpg", "is bad") for p in broken if first <= p < first + size}
        images[list(rows)] = torch.nan  # must not be read
        positions = torch.arange(first, first + size)
        yield HostBatch(images, positions % CLASSES, positions, 0, broken=rows)


def test_a_step_without_broken_samples_is_an_ordinary_one() -> None:
    world = World()
    found = list(world.leaving_out.agreed(batches()))
    assert [batch.left_out for batch in found] == [None, None]
    world.step(found)
    assert world.seen == [4, 4]
    assert len(world.bad) == 0


def test_all_workers_know_what_is_broken_in_each_micro_batch() -> None:
    first, second = World().leaving_out.agreed(batches(1, 6, 7))
    assert first.left_out is not None
    assert second.left_out is not None
    assert first.left_out.good.tolist() == [True, False, True, True]
    assert second.left_out.good.tolist() == [True, True, False, False]
    assert (first.left_out.factor, second.left_out.factor, second.left_out.num) == (8 / 5, 8 / 5, 2)


def test_a_step_is_decoded_as_a_whole_and_not_further() -> None:
    taken: list[int] = []

    def endless() -> Iterator[HostBatch]:
        while True:
            for batch in batches():
                taken.append(1)
                yield batch

    agreed = World().leaving_out.agreed(endless())
    next(agreed)
    assert len(taken) == PARTS
    next(agreed)
    assert len(taken) == PARTS


@pytest.mark.parametrize("broken", [(1,), (0, 1), (0, 1, 2, 3), (1, 2, 7), (0, 1, 2, 3, 4, 5, 6)])
def test_the_next_step_after_broken_samples_is_whole_again_and_nothing_is_nan(broken: tuple[int, ...]) -> None:
    world, never = World(), World()
    before = {name: tensor.clone() for name, tensor in world.net.state_dict().items()}
    assert world.step(batches(*broken)) > 0
    assert all(tensor.isfinite().all() for tensor in world.net.state_dict().values())
    world.net.load_state_dict(before)
    assert world.step(batches()) == never.step(batches())
    for name, tensor in never.net.state_dict().items():
        assert torch.equal(world.net.state_dict()[name], tensor), name


def test_without_samples_the_users_loss_is_not_called() -> None:
    world = World()
    world.step(batches(0, 1, 2, 3))
    assert world.seen == [4]


def test_a_step_of_broken_samples_alone_ends_the_run() -> None:
    with pytest.raises(DataError, match=r"train/0.jpg: is bad; so are all other images of a step"):
        list(World().leaving_out.agreed(batches(*range(BATCH))))


def test_more_broken_images_than_allowed_end_the_run() -> None:
    world = World(data=replace(DATA, max_bad_images=1))
    with pytest.raises(DataError, match=r"2 broken images, for example train/1.jpg is bad; train/6.jpg is bad"):
        list(world.leaving_out.agreed(batches(1, 6)))


def test_a_compiled_model_computes_a_step_with_broken_samples_without_a_compilation() -> None:
    compiled, plain = World(DdpSettings(compile_backend="aot_eager"), parts=1), World(parts=1)
    losses = []
    for world in (compiled, plain):
        losses.append([world.step(batches(parts=1))])
        num = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        losses[-1] += [world.step(batches(1, 4, parts=1)), world.step(batches(parts=1))]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)

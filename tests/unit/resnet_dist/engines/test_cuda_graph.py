"""Graphed gradients, with a replacement for the graph that runs the work again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from resnet_dist.engines.cuda_graph import WARM_UPS, CudaRecorder, GraphedGradients
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout


class Replayed(CudaRecorder):
    """Records by remembering the work, replays by running it again."""

    def __init__(self) -> None:
        self.num_captured = 0

    def warming_up(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        work()
        return work


class World:
    def __init__(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
        spans = Spans(BatchLayout(4), rank=0, span="global")
        self.net = use_spans(net, spans, momentum=0.1, epsilon=1e-5)
        self.statistics = RunningStatistics(self.net)
        self.num_runs = 0

    def run(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.num_runs += 1
        self.net.zero_grad()
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss.backward()
        return loss.detach(), (logits.argmax(1) == labels).sum()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator),
        torch.randint(3, (4,), generator=generator),
    )


def test_every_step_gives_the_gradients_of_its_own_images() -> None:
    graphed, plain = World(), World()
    recorder = Replayed()
    step = GraphedGradients(graphed.run, graphed.net, recorder)
    for seed in range(3):
        loss, correct = step(*batch(seed))
        expected_loss, expected_correct = plain.run(*batch(seed))
        assert torch.equal(loss, expected_loss)
        assert torch.equal(correct, expected_correct)
        for own, other in zip(graphed.net.parameters(), plain.net.parameters(), strict=True):
            assert own.grad is not None
            assert torch.equal(own.grad, other.grad)  # type: ignore[arg-type]
    assert recorder.num_captured == 1
    assert graphed.num_runs == WARM_UPS + 1 + 3


def test_warming_up_leaves_no_trace_in_the_batch_statistics() -> None:
    graphed, plain = World(), World()
    GraphedGradients(graphed.run, graphed.net, Replayed())(*batch(0))
    plain.run(*batch(0))
    assert torch.equal(graphed.statistics.sums(), plain.statistics.sums())

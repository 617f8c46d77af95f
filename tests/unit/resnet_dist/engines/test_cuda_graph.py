"""Graphed gradients, with a replacement for the graph that runs the work again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist import build
from resnet_dist.data.loader import HostBatch
from resnet_dist.engines import cuda_graph, ddp
from resnet_dist.engines.cuda_graph import WARM_UPS, CudaRecorder, Graph, GraphedGradients
from resnet_dist.engines.ddp import DdpEngine, DdpSettings
from resnet_dist.engines.factory import build_engine
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, Recipe, ScheduleRecipe, SpeedRecipe
from resnet_dist.telemetry.stages import Stages


class Work:
    """A graph that runs its work again."""

    def __init__(self, work: Callable[[], None], resets: list[None]) -> None:
        self.replay, self._resets = work, resets

    def reset(self) -> None:
        self._resets.append(None)


class Replayed:
    """Records by remembering the work, replays by running it again, and notes what happens on the graph's stream."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.resets: list[None] = []
        self.is_on_stream = False

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        self.is_on_stream = True
        yield
        self.is_on_stream = False

    def capture(self, work: Callable[[], None]) -> Graph:
        assert not self.is_on_stream  # it enters the stream itself
        self.num_captured += 1
        with self.on_stream():
            work()
        return Work(work, self.resets)


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


def test_what_an_earlier_run_has_left_in_cycles_is_freed_before_the_capture_and_not_during_it() -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.itself = self

    world, recorder, alive = World(), Replayed(), []
    capture = recorder.capture

    def noted(work: Callable[[], None]) -> Graph:
        alive.append(left() is not None)
        return capture(work)

    recorder.capture = noted  # type: ignore[method-assign]
    gc.disable()
    try:
        left = weakref.ref(Pipeline())
        assert left() is not None
        GraphedGradients(world.run, world.net, recorder).capture(*batch(0))
    finally:
        gc.enable()
    assert alive == [False]


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


def test_a_graph_captured_beforehand_is_not_captured_again_and_gives_the_same() -> None:
    graphed, plain = World(), World()
    recorder = Replayed()
    step = GraphedGradients(graphed.run, graphed.net, recorder)
    images, labels = batch(0)
    step.capture(torch.zeros_like(images), torch.zeros_like(labels))
    assert torch.equal(step(images, labels)[0], plain.run(images, labels)[0])
    assert recorder.num_captured == 1
    assert torch.equal(graphed.statistics.sums(), plain.statistics.sums())


def test_a_released_graph_is_deleted_and_the_next_call_captures_another(monkeypatch: pytest.MonkeyPatch) -> None:
    graphed, plain, recorder = World(), World(), Replayed()
    monkeypatch.setattr(cuda_graph, "CudaRecorder", lambda: recorder)
    optimizer = torch.optim.SGD(graphed.net.parameters(), lr=0.0)
    settings = DdpSettings(cuda_graph=True)
    engine = DdpEngine(graphed.net, optimizer, cross_entropy_sum, batch_size=4, num_micro_batches=1, settings=settings)
    engine.release()  # nothing was captured
    for number in (1, 2):
        loss = engine.step([MicroBatch(*batch(0))], 0.0).loss
        assert loss == plain.run(*batch(0))[0]
        assert (recorder.num_captured, len(recorder.resets)) == (number, number - 1)
        engine.release()
        assert len(recorder.resets) == number


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    graphed = World()
    step = GraphedGradients(graphed.run, graphed.net, Replayed())
    images, labels = batch(0)
    step(images, labels)
    with pytest.raises(ValueError, match=r"inputs of torch.float64 \[4, 3, 2, 2\], got torch.float64 \[1, 3, 2, 2\]"):
        step(images[:1], labels)
    with pytest.raises(ValueError, match=r"of torch.int64 \[4\], got torch.float64 \[4\]"):
        step(images, labels.double())


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine_under_ddp(net: nn.Module, *, graph: bool) -> DdpEngine:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    settings = DdpSettings(cuda_graph=graph, wrap_alone=True)
    return DdpEngine(net, optimizer, cross_entropy_sum, batch_size=4, num_micro_batches=1, settings=settings)


@pytest.mark.usefixtures("one_process")
def test_ddp_is_constructed_warmed_up_and_captured_on_the_stream_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, on_stream = Replayed(), []
    monkeypatch.setattr(cuda_graph, "CudaRecorder", lambda: recorder)
    wrap = ddp._wrap

    def noted(*arguments: Any) -> Any:
        on_stream.append(recorder.is_on_stream)
        return wrap(*arguments)

    monkeypatch.setattr(ddp, "_wrap", noted)
    net = World().net
    net.register_forward_pre_hook(lambda *_: on_stream.append(recorder.is_on_stream))
    engine_under_ddp(net, graph=True).prepare(MicroBatch(*batch(9)))
    assert on_stream == [True] * (1 + WARM_UPS + 1)


@pytest.mark.usefixtures("one_process")
def test_steps_under_ddp_are_those_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "CudaRecorder", Replayed)
    graphed, plain = (engine_under_ddp(World().net, graph=graph) for graph in (True, False))
    graphed.prepare(MicroBatch(*batch(9)))
    for seed in range(3):
        graphed.module.zero_grad()  # `Replayed` adds to the gradients, where a graph sets them
        losses = [engine.step([MicroBatch(*batch(seed))], 0.1).loss for engine in (graphed, plain)]
        assert torch.equal(*losses)
    for own, other in zip(graphed.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_run_captures_its_graph_with_black_images_of_its_own_shape_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, moved = Replayed(), []
    shown: list[tuple[object, int]] = []  # the stages, each with the number of captures before it
    stages = Stages(lambda record: shown.append((record["detail"]["begins"], recorder.num_captured)))  # type: ignore[index]
    monkeypatch.setattr(cuda_graph, "CudaRecorder", lambda: recorder)

    def to_device(batch: HostBatch) -> MicroBatch:
        moved.append(batch)
        return MicroBatch(batch.images.double() / 255, batch.labels)

    for graph in (False, True):
        recipe = Recipe(
            data=DataRecipe(resolution=2),
            batch=BatchRecipe(size=4),
            duration=Duration.parse("1 step"),
            schedule=ScheduleRecipe(peak_lr=0.1),
            speed=SpeedRecipe(cuda_graph=graph),
        )
        net = World().net
        engine = build_engine(recipe, net, torch.optim.SGD(net.parameters(), lr=0.1), cross_entropy_sum)
        build._prepare(recipe, engine, to_device, 4, stages)
        assert shown == [("capturing a CUDA graph", 0)] * graph
        assert (len(moved), recorder.num_captured) == (graph, graph)
        engine.step([MicroBatch(*batch(0))], 0.1)
        assert recorder.num_captured == graph
    assert moved[0].images.shape == (4, 3, 2, 2)


class Streams:
    """torch.cuda's streams as numbers, and the calls that order them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.current, outer = "callers", self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Any) -> None:
                outer.calls.append((self.name, "waits for", other.name))

        class Graph:
            def __init__(self, graph: Any, *, stream: Any, capture_error_mode: str) -> None:
                outer.calls.append(("captures on", stream.name, capture_error_mode))

            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

        @contextmanager
        def entered(stream: Any) -> Iterator[None]:
            self.current, before = stream.name, self.current
            yield
            self.current = before

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self.current))
        monkeypatch.setattr(torch.cuda, "stream", entered)
        monkeypatch.setattr(torch.cuda, "graph", Graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("G", (), {"replay": lambda: None}))


def test_the_recorder_orders_its_stream_with_the_callers_and_captures_for_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch)
    recorder = CudaRecorder()
    with recorder.on_stream():
        assert streams.current == "side"
    assert streams.current == "callers"
    recorder.capture(lambda: None)
    assert streams.calls == [
        ("side", "waits for", "callers"),
        ("callers", "waits for", "side"),
        ("captures on", "side", "thread_local"),
    ]

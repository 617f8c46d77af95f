"""What a worker keeps in memory when training fails, and a run that goes on from it with the same bits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import in_two_parts
from resnet_dist.engines.zero import ZeroEngine
from resnet_dist.errors import DivergedError
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    EvaluateRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.json_lines import without_non_finite
from resnet_dist.telemetry.metrics_file import NoSink
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.step_records import StepRecords
from resnet_dist.training.survivor import LastStep, MemoryState, Start
from resnet_dist.training.trainer import Trainer

CPU, STEPS, MEASURED = torch.device("cpu"), 6, ("time_s", "images_per_s", "step_time_s", "data_wait_s", "time_left_s")
parse = Duration.parse


class Records(NoSink):
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: Mapping[str, object]) -> None:
        self.records.append(dict(record))

    def of_steps(self) -> list[dict[str, Any]]:
        """The records of steps and evaluations, without what was measured."""
        kept = [record for record in self.records if record["kind"] != "event" or record["event"] == "epoch_complete"]
        gone = (*MEASURED, "memory_bytes")
        return [without_non_finite({key: value for key, value in record.items() if key not in gone}) for record in kept]

    def events(self) -> list[tuple[int, str]]:
        return [(record["step"], record["event"]) for record in self.records if record["kind"] == "event"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[[Path], Path]) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def recipe_of(images: Path, precision: str, **more: Any) -> Recipe:
    recipe = Recipe(
        data=DataRecipe(root=str(images), resolution=8),
        batch=BatchRecipe(size=6),  # of 8 images: an epoch ends in steps 2, 3, 4 and 6
        duration=parse(f"{STEPS} steps"),
        schedule=ScheduleRecipe(peak_lr=0.1, decay="cosine"),
        model=ModelRecipe(name="resnet20", num_classes=2),
        optimizer=OptimizerRecipe(name="sgd", momentum=0.9, weight_decay=1e-3),
        evaluate=EvaluateRecipe(every=parse("3 steps")),
        ema=EmaRecipe(decay=0.7),
        precision=precision,  # type: ignore[arg-type]
    )
    return replace(recipe, **more)


def trainer(
    recipe: Recipe, folder: Path, sink: Records, resume: MemoryState | Path | None = None, every: int = 3
) -> Trainer:
    options = RunOptions(
        CheckpointOptions(folder, Retention(99)), folder.parent / "index", parse(f"{every} steps"), log_every=1
    )
    return build(recipe, Worker(0, 1, CPU, 1), options, sink, Unattended(), resume)


class Interrupted(Exception):  # noqa: N818 - reads as what happened
    """What the loss of a worker is for the others: an error somewhere in a step."""


@contextlib.contextmanager
def interrupted(owner: type, name: str, call: int, *, after: bool) -> Iterator[None]:
    """Raise Interrupted in a call of a function, before it has done anything or after it has done all."""
    function, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Interrupted
        result = function(*arguments, **named)
        if calls == call:
            raise Interrupted
        return result

    with patch.object(owner, name, wrapped):
        yield


def kept_after(
    recipe: Recipe, folder: Path, sink: Records, owner: type, name: str, call: int, *, after: bool
) -> CheckpointContent | None:
    with interrupted(owner, name, call, after=after):
        training = trainer(recipe, folder, sink)
        with pytest.raises(Interrupted):
            training.fit()
        return training.state()


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def assert_is(state: CheckpointContent, path: Path, *, with_metrics: bool) -> None:
    """`state` is what the checkpoint at `path` holds."""
    checkpoint = restore.load(path).content()
    assert_same(state.model, checkpoint.model)
    assert_same(state.flat_optimizer(), checkpoint.flat_optimizer())
    assert_same(state.ema or {}, checkpoint.ema or {})
    found, expected = json.loads(state.state_json()), dict(checkpoint.state)
    del found["unfinished"]
    assert ("metrics" in found) == with_metrics
    if not with_metrics:
        expected.pop("metrics", None)
    assert found == expected


@pytest.fixture(scope="module", params=["float64", "float32", "float16"])
def whole(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, Records]:
    """A run that nothing interrupts, with a checkpoint of every step."""
    recipe, sink = recipe_of(images, request.param), Records()
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    trainer(recipe, folder, sink, every=1).fit()
    return recipe, folder, sink


# (function, call, after it) -> the step that is kept, and whether its evaluation is
KEPT: list[tuple[type, str, int, bool, int, bool]] = [
    (DdpEngine, "gradients", 4, False, 3, True),
    (DdpEngine, "_norms", 5, True, 4, False),
    (RunningStatistics, "sums", 3, True, 2, False),
    (RunningStatistics, "_pooled", 3, True, 2, False),
    (Trainer, "_end_step", 2, False, 2, False),
    (Trainer, "_evaluate", 1, False, 3, False),
    (Trainer, "_evaluate", 1, True, 3, True),
    (Trainer, "_save", 1, False, 3, True),
    (Trainer, "_save", 1, True, 3, True),
    (Trainer, "_save", 2, False, 6, True),
    (Trainer, "_record", 1, True, 2, False),
]


@pytest.mark.parametrize(("owner", "name", "call", "after", "step", "with_metrics"), KEPT, ids=lambda value: str(value))
def test_the_state_after_the_last_completed_step_is_its_checkpoint_and_the_run_goes_on_with_the_same_bits(
    whole: tuple[Recipe, Path, Records],
    tmp_path: Path,
    owner: type,
    name: str,
    call: int,
    after: bool,
    step: int,
    with_metrics: bool,
) -> None:
    recipe, expected, undisturbed = whole
    folder, sink = tmp_path / "checkpoints", Records()
    state = kept_after(recipe, folder, sink, owner, name, call, after=after)
    assert state is not None
    assert_is(state, expected / f"step-{step:08d}", with_metrics=with_metrics)

    second = Records()
    trainer(recipe, folder, second, MemoryState(step, 0, state)).fit()
    started = next(record for record in second.records if record.get("event") == "started")
    assert (started["step"], started["detail"]["from_memory"]) == (step, True)
    # The first attempt has written all records of its steps; the second one may write some of them again.
    both = {(r["kind"], r["step"], r.get("event")): r for r in [*sink.of_steps(), *second.of_steps()]}
    assert both == {(r["kind"], r["step"], r.get("event")): r for r in undisturbed.of_steps()}
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000006"]
    for path in folder.iterdir():
        assert_is(
            replace(found := restore.load(path).content(), state={**found.state, "unfinished": {}}),
            expected / path.name,
            with_metrics=True,
        )


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (DdpEngine, "gradients", 1, True),  # nothing is trained yet
        (DdpEngine, "update", 4, False),
        (DdpEngine, "update", 4, True),
        (RunningStatistics, "clear", 4, False),
        (WeightAverage, "update", 4, False),
        (WeightAverage, "update", 4, True),
        (StepRecords, "add", 3, False),
        (StepRecords, "add", 3, True),
    ],
)
def test_there_is_no_state_in_the_middle_of_an_update_or_of_a_record(
    images: Path, tmp_path: Path, owner: type, name: str, call: int, after: bool
) -> None:
    recipe = recipe_of(images, "float64")
    assert kept_after(recipe, tmp_path / "checkpoints", Records(), owner, name, call, after=after) is None


def test_a_diverged_run_keeps_nothing(images: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images, "float32", schedule=ScheduleRecipe(peak_lr=1e30, decay="constant"))
    training = trainer(recipe, tmp_path / "checkpoints", Records())
    with pytest.raises(DivergedError):
        training.fit()
    assert training.state() is None


def test_totals_that_were_not_read_yet_are_read_and_one_that_is_not_finite_leaves_no_state(
    images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(images, "float32", schedule=ScheduleRecipe(peak_lr=1e30, decay="constant"))
    assert kept_after(recipe, tmp_path / "a", Records(), DdpEngine, "gradients", 3, after=False) is None


@pytest.mark.parametrize("fails", ["content", "has_lost"])
def test_an_error_while_the_state_is_copied_does_not_hide_that_of_training(
    images: Path, tmp_path: Path, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    training = trainer(recipe_of(images, "float64"), tmp_path / "checkpoints", Records())
    with interrupted(DdpEngine, "gradients", 3, after=False), pytest.raises(Interrupted):
        training.fit()
    assert training.state() is not None
    failing = Mock(side_effect=MemoryError("no memory"))
    more = {"content": failing} if fails == "content" else {"beside": Mock(has_lost=failing)}
    training.parts = replace(training.parts, **more)
    assert training.state() is None
    assert caplog.messages[-1] == "the state of step 2 is not kept: MemoryError: no memory"


def test_the_state_is_a_copy(images: Path, tmp_path: Path) -> None:
    with interrupted(DdpEngine, "gradients", 3, after=False):
        training = trainer(recipe_of(images, "float64"), tmp_path / "checkpoints", Records())
        with pytest.raises(Interrupted):
            training.fit()
    state = training.state()
    assert state is not None
    before = state.map(torch.clone)
    with torch.no_grad():
        for tensor in [*training.parts.engine.module.state_dict().values()]:
            tensor.zero_()
    assert_same(state.model, before.model)


def test_a_worker_that_fails_again_before_the_next_step_still_has_the_state_and_the_records(
    whole: tuple[Recipe, Path, Records], tmp_path: Path
) -> None:
    recipe, expected, _ = whole
    folder = tmp_path / "checkpoints"
    state = kept_after(recipe, folder, Records(), DdpEngine, "_norms", 5, after=False)
    assert state is not None
    with interrupted(DdpEngine, "_norms", 1, after=False):
        second = trainer(recipe, folder, Records(), MemoryState(4, 0, state))
        with pytest.raises(Interrupted):
            second.fit()
    again = second.state()
    assert again is not None
    assert_is(again, expected / "step-00000004", with_metrics=False)
    assert again.state["unfinished"] == state.state["unfinished"]


def test_the_records_of_the_last_two_steps_are_kept_for_rank_0(
    whole: tuple[Recipe, Path, Records], tmp_path: Path
) -> None:
    recipe, _, undisturbed = whole
    state = kept_after(recipe, tmp_path / "checkpoints", Records(), DdpEngine, "gradients", 4, after=False)
    assert state is not None
    kept = Records()
    kept.records = [dict(record) for record in state.state["unfinished"]["records"]]
    assert kept.of_steps() == [record for record in undisturbed.of_steps() if record["step"] in (2, 3)]


def test_only_missing_records_are_written(images: Path, tmp_path: Path) -> None:
    """What rank 0 has in its file is not written twice."""
    recipe, folder = recipe_of(images, "float64"), tmp_path / "checkpoints"
    state = kept_after(recipe, folder, Records(), DdpEngine, "gradients", 4, after=False)
    assert state is not None
    second = trainer(recipe, folder, sink := Records(), MemoryState(3, 0, state))
    parts = replace(second.parts, unwritten=lambda records: records[-1:])
    Trainer(parts, second.timetable, 1, 3, start=Start.of(state)).fit()
    last = state.state["unfinished"]["records"][-1]
    written = [(record["kind"], record["step"]) for record in sink.records if record["step"] <= 3]
    assert [pair for pair in written if pair[0] != "event"] == [(last["kind"], 3)]


# --- whether a state may be used


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("vector", torch.ones(2))
        self.register_buffer("cache", torch.ones(2), persistent=False)


class InOnePart:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def step(self) -> None: ...


class InTwoParts(InOnePart):
    def step(self) -> None: ...
    def gradients(self) -> None: ...
    def update(self) -> None: ...


class OfTheUser(InTwoParts):
    """Does something else in a step: it must be called."""

    def step(self) -> None: ...


def last_step(module: nn.Module, bad: BadImages | None = None) -> LastStep:
    last = LastStep(0, Start(), InTwoParts(module), NoSink(), bad)  # type: ignore[arg-type]
    last.complete(1, Mock())
    with last.recording(1):
        pass
    assert last.is_usable()
    return last


def limit_norm(module: WithBuffer) -> None:
    with torch.no_grad():
        module.weight.clamp_(max=0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.get_buffer("vector").add_(1),
        lambda module: setattr(module, "vector", torch.ones(2)),
        lambda module: delattr(module, "vector"),
        limit_norm,
    ],
)
def test_a_buffer_or_weight_that_a_users_forward_pass_has_changed_leaves_no_state(
    change: Callable[[WithBuffer], object],
) -> None:
    module = WithBuffer()
    last = last_step(module)
    module.cache.zero_()  # is not saved
    assert last.is_usable()
    change(module)
    assert not last.is_usable()
    last.complete(2, Mock())
    assert last.is_usable()


def test_an_engine_that_updates_in_its_step_and_weights_on_a_gpu_have_no_state() -> None:
    with torch.device("meta"):
        elsewhere = nn.Linear(1, 1)
    engines = [
        InTwoParts(nn.Linear(1, 1)),
        InOnePart(nn.Linear(1, 1)),
        OfTheUser(nn.Linear(1, 1)),
        InTwoParts(elsewhere),
    ]
    lasts = [LastStep(5, Start(), engine, NoSink(), None) for engine in engines]  # type: ignore[arg-type]
    assert [last.is_usable() for last in lasts] == [True, False, False, False]


def test_zero_is_not_in_two_parts() -> None:
    assert in_two_parts(ZeroEngine.__new__(ZeroEngine)) is None
    assert in_two_parts(DdpEngine.__new__(DdpEngine)) is not None


def test_broken_images_of_an_interrupted_step_are_not_part_of_the_state() -> None:
    images, bad = {"a": "is broken"}, Mock(spec=BadImages)
    bad.state = lambda: {"images": dict(images), "num_samples": 3}
    last = last_step(nn.Linear(1, 1), bad)
    images["b"] = "is broken, too"
    content = CheckpointContent(1, {}, {}, {"bad_images": bad.state()})
    assert last.copied(content).state["bad_images"] == {"images": {"a": "is broken"}, "num_samples": 3}
    last.keep()
    assert len(last.copied(content).state["bad_images"]["images"]) == 2


def test_a_memory_state_is_held_by_one_worker() -> None:
    content = CheckpointContent(4, {}, {}, {})
    assert MemoryState(4, 1, content).held() is content
    with pytest.raises(AssertionError):
        MemoryState(4, 1, None).held()
    with pytest.raises(AssertionError):
        MemoryState(5, 1, content).held()

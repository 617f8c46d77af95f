"""A run that ends at a target: with the evaluation that counts, and again after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    EvaluateRecipe,
    ModelRecipe,
    Recipe,
    ScheduleRecipe,
    StopAtRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.training.parts import Outcome
from resnet_dist.training.target import Target

parse = Duration.parse


class Records:
    """A sink that keeps its records."""

    def __init__(self) -> None:
        self.all: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, object]) -> None:
        self.all.append(record)

    def close(self) -> None: ...

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [record for record in self.all if record["kind"] == kind]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[[Path], Path]) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


Fit = Callable[..., tuple[Outcome, Records]]


@pytest.fixture
def fit(images: Path, tmp_path: Path) -> Fit:
    """Train in a folder, go on if there is a checkpoint."""

    def run(stop_at: StopAtRecipe, **changes: Any) -> tuple[Outcome, Records]:
        recipe = Recipe(
            data=DataRecipe(root=str(images), resolution=8),
            batch=BatchRecipe(size=6),
            duration=parse("6 steps"),
            schedule=ScheduleRecipe(peak_lr=0.01, decay="constant"),
            model=ModelRecipe(name="resnet20", num_classes=2),
            **{"evaluate": EvaluateRecipe(every=parse("2 steps"))} | changes,
            stop_at=stop_at,
        )
        records, saved = Records(), restore.newest(tmp_path / "checkpoints")
        options = RunOptions(
            CheckpointOptions(tmp_path / "checkpoints", Retention(9)), tmp_path / "i", parse("3 steps"), 1
        )
        worker = Worker(0, 1, torch.device("cpu"), num_threads=1)
        trainer = build(recipe, worker, options, records, Unattended(), None if saved is None else saved.path)
        return trainer.fit(), records

    return run


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_a_target_ends_the_run_and_a_start_after_a_kill_finds_it_reached(fit: Fit, tmp_path: Path) -> None:
    outcome, records = fit(StopAtRecipe(loss=100.0))
    assert (outcome.step, outcome.finished, outcome.reached) == (2, True, True)
    assert steps(tmp_path) == ["step-00000002"]
    again, repeated = fit(StopAtRecipe(loss=100.0))
    assert again == outcome
    assert repeated.of("train") == []
    [first], [second] = records.of("eval"), repeated.of("eval")
    assert {**first, "time_s": 0} == {**second, "time_s": 0}
    assert [record["event"] for record in repeated.of("event")] == ["started", "target_reached", "finished"]


def test_a_run_that_was_killed_before_that_checkpoint_reaches_the_target_again(fit: Fit, tmp_path: Path) -> None:
    """The target is the loss of step 4; the checkpoint of step 3 is all that is left."""
    whole, records = fit(StopAtRecipe())
    assert whole.reached is None
    losses = {record["step"]: record["loss"] for record in records.of("eval")}
    for path in (tmp_path / "checkpoints").glob("step-*"):
        if path.name != "step-00000003":
            path.rename(tmp_path / path.name)
    outcome, _ = fit(StopAtRecipe(loss=losses[4]))
    assert (outcome.step, outcome.reached) == (4, True)


def test_without_a_target_the_same_run_goes_on(fit: Fit, tmp_path: Path) -> None:
    fit(StopAtRecipe(loss=100.0))
    outcome, records = fit(StopAtRecipe())
    assert (outcome.step, outcome.reached) == (6, None)
    assert [record["step"] for record in records.of("train")] == [3, 4, 5, 6]
    assert [r["event"] for r in records.of("event") if r["event"].startswith("target")] == []


def test_the_evaluation_that_counts_is_that_of_the_average_of_the_weights(fit: Fit, tmp_path: Path) -> None:
    _, records = fit(StopAtRecipe(), ema=EmaRecipe(decay=0.9))
    losses = [record["loss"] for record in records.of("eval")]
    assert {record["weights"] for record in records.of("eval")} == {"ema"}
    best = losses.index(min(losses))
    for path in (tmp_path / "checkpoints").glob("step-*"):
        path.rename(tmp_path / path.name)
    outcome, _ = fit(StopAtRecipe(loss=min(losses)), ema=EmaRecipe(decay=0.9))
    assert (outcome.step, outcome.reached) == (2 * (best + 1), True)


@pytest.mark.parametrize(
    ("target", "metrics", "reached"),
    [
        (Target("top1", 0.759), {"top1": 7590 / 10000}, True),
        (Target("top1", 0.759), {"top1": 7589 / 10000}, False),
        (Target("loss", 0.5), {"loss": 0.5}, True),
        (Target("loss", 0.5), {"loss": 0.51}, False),
        (Target("loss", 0.5), {"loss": None}, False),
        (Target("loss", 0.5), {}, False),
    ],
)
def test_a_target_is_reached_by_the_value_itself(target: Target, metrics: dict[str, Any], reached: bool) -> None:
    assert target.is_reached(metrics) is reached


def test_the_target_of_a_recipe() -> None:
    assert Target.of(StopAtRecipe()) is None
    assert Target.of(StopAtRecipe(top1=0.759)) == Target("top1", 0.759)
    assert Target.of(StopAtRecipe(loss=0.0)) == Target("loss", 0.0)

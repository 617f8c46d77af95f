"""A trainer with tiny parts: what it does, in which order, and what it never does."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from resnet_dist.data import Index
from resnet_dist.data.ledger import Ledger, Tallies, tallies_of
from resnet_dist.data.loader import BadImage, HostBatch, LeftOut
from resnet_dist.data.order import Stream
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DivergedError, LedgerError, OutOfMemory
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.schema import DataRecipe
from resnet_dist.telemetry.bottleneck import StepTimes
from resnet_dist.telemetry.layers import NoLayers
from resnet_dist.telemetry.stages import Stages
from resnet_dist.telemetry.step_totals import StepExchange, StepSums
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.beside import InTurn
from resnet_dist.training.evaluate import Evaluation
from resnet_dist.training.parts import LoopTimes, Outcome, Timetable, TrainerParts
from resnet_dist.training.survivor import Start
from resnet_dist.training.target import Target
from resnet_dist.training.trainer import Trainer

BATCH_SIZE, NUM_SAMPLES = 4, 8
EVALUATION = Evaluation(top1=0.5, top5=1.0, loss=0.25, num_samples=2)
NEVER = 10**6


@dataclass
class World:
    """All of the trainer's parts in one; `did` is the order of events, `records` what was written."""

    stop_in: int = 0  # step in which this worker is asked to stop; 0: never
    losses: Mapping[int, float] = field(default_factory=dict)  # sum over the batch; 8.0 in all other steps
    gradients: Mapping[int, float] = field(default_factory=dict)  # squared norms; 4.0 in all other steps
    ratios: tuple[float, ...] = ()  # trust ratios of the layers
    layers_in: int = 0  # step in which the layers are recorded; 0: never
    scales_loss: bool = False
    scale: float = 1024.0  # of the loss
    skipped: tuple[int, ...] = ()  # steps that the engine leaves out
    averaged: list[int] = field(default_factory=list)
    windows: list[StepTimes] = field(default_factory=list)
    now_s: float = 0.0
    did: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)  # of the micro-batches of each step
    top1s: Mapping[int, float] = field(default_factory=dict)  # of evaluations by step; 0.5 in all others
    step_number: int = 0
    closed: bool = False
    module: nn.Module = field(default_factory=nn.Identity)
    ledger: Ledger | None = None
    tallies: Callable[[int], Tallies] = lambda micro_batch: {}  # of the micro-batches, by number from 0

    # --- engine
    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        self.positions.append([int(batch.labels[0]) for batch in micro_batches])
        self.step_number += 1
        self.now_s += 2.0
        self.learning_rates.append(learning_rate)
        self.did.append(f"step {self.step_number}")
        loss = self.losses.get(self.step_number, 8.0)
        return StepSums(
            torch.tensor(loss, dtype=torch.float64),
            torch.tensor(3.0, dtype=torch.float64),
            torch.tensor(self.gradients.get(self.step_number, 4.0), dtype=torch.float64),
            self.step_number in self.skipped,
            {"loss_scale": self.scale, "num_skipped": self.num_skipped()} if self.scales_loss else {},
            torch.tensor(self.ratios, dtype=torch.float64) if self.ratios else None,
        )

    # --- layers
    def begin(self, step: int) -> None:
        self.did.append(f"observe {step}" if step == self.layers_in else "")

    def reduce(self) -> None: ...

    def end(self, step: int, sums: StepSums) -> dict[str, object] | None:
        return {"kind": "layers", "step": step, "layers": {}} if step == self.layers_in else None

    def num_skipped(self) -> int:
        return sum(step <= self.step_number for step in self.skipped)

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def load_optimizer_state(self, state: object) -> None: ...

    @property
    def skips_overflows(self) -> bool:
        return self.scales_loss

    def scaler_state(self) -> dict[str, float]:
        return {"loss_scale": self.scale / 2} if self.scales_loss else {}  # of the step that comes

    def load_scaler_state(self, state: object) -> None: ...

    # --- data
    def batches_from(self, first_step: int) -> Generator[HostBatch, None, None]:
        self.did.append(f"batches from {first_step}")
        self.step_number = first_step
        position = torch.tensor([first_step * 2])
        try:
            while True:
                self.now_s += 0.25
                checksum = int(position)
                images, tallies = torch.zeros(1, 3, 1, 1, dtype=torch.uint8), self.tallies(checksum)
                yield HostBatch(images, position, position, checksum, tallies=tallies)
                position = position + 1
        finally:
            self.closed = True

    # --- supervisor
    def stop_requested(self) -> bool:
        return self.step_number == self.stop_in > 0

    def metrics(self, record: Mapping[str, Any]) -> None: ...

    # --- sink
    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def close(self, *, patient: bool = True) -> None: ...

    # --- the rest
    def evaluate(self, step: int) -> Evaluation:
        self.did.append("evaluate")
        self.now_s += 100.0
        return replace(EVALUATION, top1=self.top1s.get(step, 0.5))

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        assert metrics in ({}, {"top1": self.top1s.get(step, 0.5), "top5": 1.0, "loss": 0.25})
        self.did.append(f"save {step}" + " and wait" * wait + " with metrics" * bool(metrics))
        self.now_s += 100.0

    def poll(self) -> None: ...

    def classify(self, windows: list[StepTimes]) -> None:
        self.windows = windows

    def saves(self) -> list[int]:
        return [int(entry.split()[1]) for entry in self.did if entry.startswith("save")]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    def events(self) -> list[tuple[int, str]]:
        return [(record["step"], record["event"]) for record in self.of("event")]


def trainer(
    world: World,
    *,
    steps: int,
    evaluate_every: int = NEVER,
    checkpoint_every: int = NEVER,
    log_every: int = 1,
    first_step: int = 0,
    evaluate_first: bool = False,
    target: Target | None = None,
    beside: InTurn | None = None,
    start: Start | None = None,
) -> Trainer:
    """`..._every` in steps."""
    parts = TrainerParts(
        engine=world,
        learning_rate=lambda step: 0.1 * step,
        batches_from=world.batches_from,
        to_device=lambda batch: MicroBatch(batch.images.float(), batch.labels),
        evaluate=world.evaluate,
        beside=beside or InTurn(),
        exchange=StepExchange(
            RunningStatistics(world.module),
            torch.device("cpu"),
            BATCH_SIZE,
            0 if world.ledger is None else world.ledger.num_sums,
        ),
        ledger=world.ledger,
        checkpoints=world,
        average=world.averaged.append,
        classify=world.classify,
        layers=world if world.layers_in else NoLayers(),
        sink=world,
        supervisor=world,
    )
    timetable = Timetable(
        total_steps=steps,
        batch_size=BATCH_SIZE,
        num_samples=NUM_SAMPLES,
        evaluate=Every(Fraction(evaluate_every * BATCH_SIZE), BATCH_SIZE),
        checkpoint=Every(Fraction(checkpoint_every * BATCH_SIZE), BATCH_SIZE),
        log_every=log_every,
    )
    return Trainer(
        parts, timetable, 2, first_step=first_step, evaluate_first=evaluate_first, target=target, start=start
    )


def test_what_must_precede_the_decoding_of_images_is_done_once_before_any() -> None:
    world, called = World(), []

    def batches_from(first_step: int) -> Generator[HostBatch, None, None]:
        called.append("decode")
        yield from world.batches_from(first_step)

    def evaluate(step: int) -> Evaluation:
        called.append("evaluate")
        return world.evaluate(step)

    made = trainer(world, steps=3, evaluate_first=True)
    made.parts = replace(
        made.parts, prepare=lambda: called.append("prepare"), batches_from=batches_from, evaluate=evaluate
    )
    made.fit()
    assert called == ["prepare", "evaluate", "decode", "evaluate"]


# --- a start from memory


def test_a_checkpoint_that_was_due_when_a_worker_was_lost_is_saved_first_with_the_metrics_of_its_evaluation() -> None:
    world = World()
    start = Start(metrics={"top1": 0.5, "top5": 1.0, "loss": 0.25}, from_memory=True)
    trainer(world, steps=3, checkpoint_every=2, evaluate_every=2, first_step=2, start=start).fit()
    assert [entry for entry in world.did if entry][:3] == ["save 2 with metrics", "batches from 2", "step 3"]


def test_an_evaluation_that_was_interrupted_comes_before_the_checkpoint_that_was_due() -> None:
    world = World()
    start = Start(from_memory=True)
    settings = {"checkpoint_every": 2, "evaluate_every": 2, "first_step": 2, "evaluate_first": True}
    trainer(world, steps=3, start=start, **settings).fit()
    assert [entry for entry in world.did if entry][:3] == ["evaluate", "save 2 with metrics", "batches from 2"]


def test_no_checkpoint_is_saved_first_where_none_was_due_or_the_start_is_from_one() -> None:
    for start, first_step in ((Start(from_memory=True), 3), (Start(), 2), (None, 2)):
        world = World()
        trainer(world, steps=5, checkpoint_every=2, first_step=first_step, start=start).fit()
        assert world.saves() == [4, 5]


def test_a_last_checkpoint_that_was_not_written_is_saved_and_waited_for() -> None:
    world = World()
    outcome = trainer(world, steps=3, first_step=3, evaluate_first=True, start=Start(from_memory=True)).fit()
    assert [entry for entry in world.did if entry] == ["evaluate", "save 3 and wait with metrics"]
    assert (outcome.step, outcome.finished) == (3, True)


def test_a_target_that_was_reached_is_saved_before_the_run_ends() -> None:
    world = World(top1s={2: 0.8})
    start, target = Start(from_memory=True), Target("top1", 0.76)
    outcome = trainer(world, steps=9, first_step=2, evaluate_first=True, target=target, start=start).fit()
    assert [entry for entry in world.did if entry] == ["evaluate", "save 2 and wait with metrics"]
    assert (outcome.step, outcome.reached) == (2, True)


def test_an_evaluation_beside_training_needs_the_checkpoint_of_the_first_step() -> None:
    class Takes(InTurn):
        def take(self, step: int, *, stopping: bool) -> bool:
            return True

    world = World()
    start = Start(from_memory=True)
    trainer(world, steps=3, first_step=2, evaluate_first=True, beside=Takes(), start=start).fit()
    assert [entry for entry in world.did if entry][:2] == ["save 2", "batches from 2"]


def test_the_records_that_rank_0_has_not_written_come_after_started_which_says_where_it_starts_from() -> None:
    world, late = World(), {"kind": "train", "step": 2, "loss": 1.0}
    trainer(world, steps=3, first_step=2, start=Start(from_memory=True, records=(late,))).fit()
    assert world.records[0]["detail"]["from_memory"] is True
    assert world.records[1] == late
    world = World()
    trainer(world, steps=3, first_step=2).fit()
    assert "from_memory" not in world.records[0]["detail"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_outlives_no_process_group_is_released_at_the_end_also_after_an_error(fails: bool) -> None:
    world, called = World(), []

    def evaluate(step: int) -> Evaluation:
        if fails:
            raise RuntimeError("the evaluation failed")
        return world.evaluate(step)

    made = trainer(world, steps=3)
    made.parts = replace(made.parts, release=lambda: called.append("release"), evaluate=evaluate)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        made.fit()
    assert called == ["release"]


# --- layers


def test_train_records_have_the_smallest_the_middle_and_the_largest_trust_ratio_of_their_step() -> None:
    world = World(ratios=(4.0, 1.0, 2.0, 8.0))
    trainer(world, steps=2).fit()
    for record in world.of("train"):
        found = {key: value for key, value in record.items() if key.startswith("trust")}
        assert found == {"trust_ratio_min": 1.0, "trust_ratio_median": 3.0, "trust_ratio_max": 8.0}


def test_without_trust_ratios_and_in_a_skipped_step_there_are_none() -> None:
    for world in (World(), World(ratios=(1.0,), scales_loss=True, skipped=(1, 2))):
        trainer(world, steps=2 if not world.skipped else 3).fit()
        records = [record for record in world.of("train") if record["step"] < 3]
        assert len(records) == 2
        assert not any(key.startswith("trust") for record in records for key in record)


def test_layers_are_observed_in_their_step_and_recorded_after_the_step_before() -> None:
    world = World(layers_in=2)
    trainer(world, steps=3).fit()
    assert [entry for entry in world.did if entry][1:4] == ["step 1", "observe 2", "step 2"]
    assert [(r["kind"], r["step"]) for r in world.records if r["kind"] != "event"][:3] == [
        ("train", 1),
        ("layers", 2),
        ("train", 2),
    ]


# --- the target


def test_the_first_evaluation_that_reaches_the_target_ends_the_run_with_a_checkpoint() -> None:
    world = World(top1s={2: 0.74, 4: 0.76, 6: 0.99})
    outcome = trainer(world, steps=9, evaluate_every=2, log_every=3, target=Target("top1", 0.76)).fit()
    assert outcome == Outcome(4, finished=True, evaluation=replace(EVALUATION, top1=0.76), reached=True)
    assert world.did[-3:] == ["step 4", "evaluate", "save 4 and wait with metrics"]
    assert world.events() == [(0, "started"), (4, "target_reached"), (4, "finished")]
    assert world.of("event")[1]["detail"] == {"metric": "top1", "target": 0.76, "value": 0.76}
    assert [record["step"] for record in world.of("train")] == [3, 4]
    assert world.closed


def test_a_run_that_never_reaches_its_target_ends_with_its_duration_and_says_so() -> None:
    world = World(top1s={2: 0.6, 4: 0.55, 5: 0.58})
    outcome = trainer(world, steps=5, evaluate_every=2, target=Target("top1", 0.76)).fit()
    assert (outcome.step, outcome.finished, outcome.reached) == (5, True, False)
    assert world.events() == [(0, "started"), (5, "target_missed"), (5, "finished")]
    assert world.of("event")[1]["detail"] == {"metric": "top1", "target": 0.76, "value": 0.58}


def test_a_target_that_only_the_last_evaluation_can_reach_needs_no_other() -> None:
    world = World(top1s={5: 0.8})
    outcome = trainer(world, steps=5, target=Target("top1", 0.76)).fit()
    assert (outcome.step, outcome.reached) == (5, True)
    assert world.saves() == [5]


@pytest.mark.parametrize(("loss", "step"), [(0.25, 2), (0.24, 6)])
def test_a_loss_is_reached_from_above(loss: float, step: int) -> None:
    outcome = trainer(World(), steps=6, evaluate_every=2, target=Target("loss", loss)).fit()
    assert (outcome.step, outcome.reached) == (step, step == 2)


def test_an_evaluation_that_is_not_a_number_reaches_no_target() -> None:
    assert not Target("top1", 0.1).is_reached({"top1": math.nan})
    assert not Target("loss", 0.1).is_reached({"loss": math.nan})


def test_a_run_that_was_killed_after_it_had_reached_its_target_ends_at_once() -> None:
    """Its checkpoint has the metrics, so the trainer of the next attempt evaluates first."""
    world = World(top1s={4: 0.8})
    outcome = trainer(world, steps=9, first_step=4, evaluate_first=True, target=Target("top1", 0.76)).fit()
    assert outcome == Outcome(4, finished=True, evaluation=replace(EVALUATION, top1=0.8), reached=True)
    assert world.did == ["evaluate"]


def test_a_stop_request_comes_before_the_evaluation_that_would_reach_the_target() -> None:
    world = World(top1s={4: 0.8}, stop_in=3)
    outcome = trainer(world, steps=9, evaluate_every=2, target=Target("top1", 0.76)).fit()
    assert (outcome.step, outcome.finished, outcome.reached) == (4, False, None)
    assert [event for _, event in world.events()] == ["started", "stopped"]


# --- evaluation beside training


class OtherProcess(InTurn):
    """Evaluates beside training, and notes in `did` what it is asked."""

    def __init__(self, did: list[str], takes: bool = True) -> None:
        self.did, self.takes = did, takes

    def take(self, step: int, *, stopping: bool) -> bool:
        self.did.append(f"take {step}" + " for the next attempt" * stopping)
        return self.takes

    def finish(self, beat: Callable[[], object], stopped: Callable[[], bool]) -> None:
        self.did.append("finish")

    def close(self) -> None:
        self.did.append("close")


def test_an_evaluation_beside_training_is_of_a_checkpoint_and_the_last_one_is_done_by_the_workers() -> None:
    world = World()
    outcome = trainer(world, steps=3, evaluate_every=1, beside=OtherProcess(world.did)).fit()
    assert [entry for entry in world.did if entry] == [
        *("batches from 0", "step 1", "take 1", "save 1", "step 2", "take 2", "save 2"),
        *("step 3", "evaluate", "save 3 and wait with metrics", "finish", "close"),
    ]
    assert outcome.evaluation == EVALUATION


def test_the_last_evaluation_is_recorded_after_those_of_earlier_steps() -> None:
    world = World()

    class Slow(OtherProcess):
        def in_use(self) -> frozenset[int]:
            return frozenset() if "finish" in self.did else frozenset({1})

        def finish(self, beat: Callable[[], object], stopped: Callable[[], bool]) -> None:
            super().finish(beat, stopped)
            world.write({"kind": "eval", "step": 1})

    trainer(world, steps=2, evaluate_every=1, beside=Slow(world.did)).fit()
    assert [record["step"] for record in world.of("eval")] == [1, 2]


def test_what_the_other_process_does_not_take_the_workers_evaluate() -> None:
    world = World()
    trainer(world, steps=2, evaluate_every=1, beside=OtherProcess(world.did, takes=False)).fit()
    assert [entry for entry in world.did if entry][:4] == ["batches from 0", "step 1", "take 1", "evaluate"]


def test_a_request_to_stop_leaves_the_evaluation_to_the_other_process_of_the_next_attempt() -> None:
    world = World(stop_in=2)
    trainer(world, steps=9, evaluate_every=2, beside=OtherProcess(world.did)).fit()
    assert world.did[-3:] == ["take 2 for the next attempt", "save 2 and wait", "close"]


def test_the_other_process_also_evaluates_what_the_attempt_before_left_out() -> None:
    world = World()
    trainer(world, steps=4, first_step=2, evaluate_first=True, beside=OtherProcess(world.did)).fit()
    assert world.did[0] == "take 2"
    assert world.did.count("evaluate") == 1


def test_the_other_process_is_ended_if_training_fails() -> None:
    world = World(losses={2: math.nan})
    with pytest.raises(DivergedError):
        trainer(world, steps=4, beside=OtherProcess(world.did)).fit()
    assert "finish" not in world.did
    assert world.did[-1] == "close"


def test_events_follow_their_steps_and_evaluation_comes_before_the_checkpoint() -> None:
    world = World()
    outcome = trainer(world, steps=6, evaluate_every=2, checkpoint_every=3).fit()
    assert world.did == [
        "batches from 0",
        *("step 1", "step 2", "evaluate", "step 3", "save 3", "step 4", "evaluate", "step 5"),
        *("step 6", "evaluate", "save 6 and wait with metrics"),
    ]
    assert outcome == Outcome(6, finished=True, evaluation=EVALUATION)
    assert world.events() == [(0, "started"), (6, "finished")]
    assert world.of("event")[0]["detail"] == {"total_steps": 6, "batch_size": 4, "num_samples": 8}


def test_the_end_of_a_run_is_evaluated_and_saved_even_if_neither_is_due() -> None:
    world = World()
    outcome = trainer(world, steps=3).fit()
    assert world.did[-2:] == ["evaluate", "save 3 and wait with metrics"]
    assert world.did.count("evaluate") == 1
    assert outcome.evaluation == EVALUATION


def test_each_step_takes_its_own_micro_batches_and_learning_rate() -> None:
    world = World()
    trainer(world, steps=3).fit()
    assert world.positions == [[0, 1], [2, 3], [4, 5]]
    assert world.learning_rates == [0.1 * completed for completed in (0, 1, 2)]


def test_a_resumed_run_continues_at_the_next_step() -> None:
    world = World()
    trainer(world, steps=7, evaluate_every=3, first_step=5).fit()
    assert world.did == ["batches from 5", "step 6", "evaluate", "step 7", "evaluate", "save 7 and wait with metrics"]
    assert world.positions == [[10, 11], [12, 13]]
    assert world.learning_rates == [0.5, 0.1 * 6]
    assert [record["step"] for record in world.of("train")] == [6, 7]
    assert world.events()[0] == (5, "started")


def test_a_run_that_is_resumed_after_its_last_step_only_evaluates() -> None:
    world = World()
    outcome = trainer(world, steps=4, first_step=4).fit()
    assert world.did == ["evaluate"]
    assert outcome == Outcome(4, finished=True, evaluation=EVALUATION)
    assert world.events() == [(4, "started"), (4, "finished")]


def test_a_request_to_stop_is_obeyed_one_step_late_with_a_checkpoint() -> None:
    world = World(stop_in=2)
    outcome = trainer(world, steps=5).fit()
    assert world.did == ["batches from 0", "step 1", "step 2", "step 3", "save 3 and wait"]
    assert outcome == Outcome(3, finished=False, evaluation=None)
    assert world.events() == [(0, "started"), (3, "stopped")]
    assert [record["step"] for record in world.of("train")] == [1, 2, 3]


def test_a_request_in_a_step_that_has_an_event_anyway_is_obeyed_at_once_and_the_evaluation_is_left_to_the_next() -> (
    None
):
    world = World(stop_in=2)
    outcome = trainer(world, steps=5, evaluate_every=2).fit()
    assert world.did == ["batches from 0", "step 1", "step 2", "save 2 and wait"]
    assert outcome == Outcome(2, finished=False, evaluation=None)


def test_an_evaluation_that_the_attempt_before_left_out_comes_first() -> None:
    world = World()
    trainer(world, steps=5, evaluate_every=2, first_step=2, evaluate_first=True).fit()
    assert world.did[:3] == ["evaluate", "batches from 2", "step 3"]
    assert [record["step"] for record in world.of("eval")] == [2, 4, 5]


@pytest.mark.parametrize("asked", [4, 5])
def test_a_request_to_stop_that_comes_with_the_last_step_finishes_the_run(asked: int) -> None:
    world = World(stop_in=asked)
    outcome = trainer(world, steps=5).fit()
    assert outcome == Outcome(5, finished=True, evaluation=EVALUATION)
    assert [entry for entry in world.did if "save" in entry] == ["save 5 and wait with metrics"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("diverges", "noticed"),
    [(2, 3), (3, 4), (4, 4), (6, 6)],  # steps 4 and 6 have a checkpoint, so their own loss is read first
)
def test_a_step_whose_loss_is_not_a_number_is_never_saved(diverges: int, noticed: int, loss: float) -> None:
    world = World(losses={diverges: loss})
    with pytest.raises(DivergedError, match=f"the loss of step {diverges} is {loss}") as caught:
        trainer(world, steps=6, checkpoint_every=4, evaluate_every=4).fit()
    assert caught.value.step == diverges
    assert world.did[-1] == f"step {noticed}"
    assert max(world.saves(), default=0) < diverges
    assert world.closed


def test_a_step_whose_gradient_is_not_a_number_is_never_saved() -> None:
    world = World(gradients={2: math.nan})
    with pytest.raises(DivergedError, match="the gradient norm of step 2 is nan"):
        trainer(world, steps=4, checkpoint_every=1).fit()
    assert world.saves() == [1]


def test_an_engine_that_leaves_out_steps_that_overflow_goes_on() -> None:
    world = World(gradients={2: math.inf}, scales_loss=True)
    assert trainer(world, steps=4).fit().finished
    assert [record["gradient_norm"] for record in world.of("train")] == [2.0, None, 2.0, 2.0]
    assert {record["loss_scale"] for record in world.of("train")} == {1024.0}


def test_a_row_counts_the_steps_that_were_skipped_up_to_its_own() -> None:
    world = World(scales_loss=True, skipped=(2, 3))
    trainer(world, steps=4).fit()
    assert [record["num_skipped"] for record in world.of("train")] == [0, 1, 2, 2]


def test_a_step_that_is_skipped_at_the_least_loss_scale_ends_the_run() -> None:
    world = World(scales_loss=True, skipped=(1, 2), scale=1.0)
    with pytest.raises(DivergedError, match=r"gradients of step 1 overflow with a loss scale of 1, the smallest\. Use"):
        trainer(world, steps=4).fit()
    assert trainer(World(scales_loss=True, scale=1.0), steps=4).fit().finished


def test_a_run_that_has_skipped_all_of_its_steps_is_not_finished() -> None:
    world = World(scales_loss=True, skipped=(1, 2, 3))
    with pytest.raises(DivergedError, match="all 3 steps were skipped"):
        trainer(world, steps=3).fit()


def test_generators_are_seeded_before_each_step() -> None:
    world = World()
    runner = trainer(world, steps=4, first_step=1)
    runner.parts = replace(runner.parts, seed=lambda step: world.did.append(f"seed {step}"))
    runner.fit()
    steps = [what for what in world.did if what.startswith(("seed", "step"))]
    assert steps == ["seed 1", "step 2", "seed 2", "step 3", "seed 3", "step 4"]


def test_an_error_that_is_explained_is_raised_as_what_it_means() -> None:
    world = World()
    runner = trainer(world, steps=4)
    meant = OutOfMemory(1, 2, "no memory")
    runner.parts = replace(runner.parts, translate_oom=lambda error: meant if isinstance(error, MemoryError) else None)
    world.step = Mock(side_effect=MemoryError)  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match="num_micro_batches=2 would fit"):
        runner.fit()
    world.step = Mock(side_effect=KeyError("else"))  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        runner.fit()


def test_the_first_logging_window_is_not_classified() -> None:
    world = World()
    trainer(world, steps=6, log_every=2).fit()
    assert [window.num_steps for window in world.windows] == [2, 2]


@pytest.mark.parametrize("stop_in", [0, 2])
def test_the_data_is_closed_however_the_run_ends(stop_in: int) -> None:
    world = World(stop_in=stop_in)
    trainer(world, steps=4).fit()
    assert world.closed


@pytest.mark.parametrize("log_every", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("checkpoint_every", [1, 2, 5])
def test_train_records_come_at_their_steps_and_at_the_end(log_every: int, checkpoint_every: int) -> None:
    world = World()
    trainer(world, steps=11, log_every=log_every, checkpoint_every=checkpoint_every).fit()
    due = [step for step in range(1, 12) if step % log_every == 0 or step == 11]
    assert [record["step"] for record in world.of("train")] == due


@pytest.mark.parametrize("log_every", [1, 3, 10])
def test_a_run_that_stops_writes_the_train_record_of_its_last_step_once(log_every: int) -> None:
    world = World(stop_in=4)
    assert trainer(world, steps=11, log_every=log_every).fit().step == 5
    due = [step for step in range(1, 6) if step % log_every == 0 or step == 5]
    assert [record["step"] for record in world.of("train")] == due


def test_a_train_record_has_means_over_the_global_batch() -> None:
    world = World(losses={2: 6.0})
    trainer(world, steps=3).fit()
    second = world.of("train")[1]
    assert (second["loss"], second["top1"], second["epoch"]) == (1.5, 0.75, 1.0)
    assert second["learning_rate"] == 0.1
    assert (second["gradient_norm"], second["sample_ids"]) == (2.0, 2 + 3)  # the checksums of two micro-batches


@pytest.mark.parametrize("checkpoint_every", [1, 3, NEVER])
@pytest.mark.parametrize("log_every", [1, 2])
def test_times_are_of_training_alone(monkeypatch: pytest.MonkeyPatch, checkpoint_every: int, log_every: int) -> None:
    world = World()
    for module in ("training.trainer", "telemetry.step_timer"):
        monkeypatch.setattr(f"resnet_dist.{module}.time", SimpleNamespace(perf_counter=lambda: world.now_s))
    run = trainer(world, steps=4, log_every=log_every, checkpoint_every=checkpoint_every, evaluate_every=2).fit()
    for record in world.of("train"):
        assert record["data_wait_s"] == 0.5  # two micro-batches of 0.25 s
        assert record["step_time_s"] == 2.5
        assert record["images_per_s"] == BATCH_SIZE / 2.5
    assert [record["time_s"] for record in world.of("eval")] == [100.0, 100.0]
    saved = len(world.saves())
    assert run.times == LoopTimes(training_s=4 * 2.5, evaluation_s=200.0, saving_s=saved * 100.0)
    # The last record comes before an evaluation and a save; what a save costs is known once there was one.
    assert world.of("train")[-1]["time_left_s"] == 100.0 + 100.0 * (saved > 1)


def test_the_wait_for_evaluations_beside_training_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr("resnet_dist.training.trainer.time", SimpleNamespace(perf_counter=lambda: world.now_s))

    class Slow(InTurn):
        def finish(self, beat: Callable[[], object], stopped: Callable[[], bool]) -> None:
            world.now_s += 30.0

    times = trainer(world, steps=2, beside=Slow()).fit().times
    assert times is not None
    assert (times.evaluation_s, times.waiting_s) == (100.0 + 30.0, 30.0)


def test_the_stages_of_a_start_end_with_the_first_step() -> None:
    for first_step, stages in ((0, ["first step", None]), (2, ["evaluating the checkpoint", "first step", None])):
        world = World()
        run = trainer(world, steps=4, first_step=first_step, evaluate_first=first_step > 0)
        run.parts = replace(run.parts, stages=Stages(world.write, first_step))
        run.fit()
        told = [record["detail"] for record in world.of("event") if record["event"] == "stage"]
        assert [detail["begins"] for detail in told] == stages
        assert [detail.get("ended") for detail in told] == [None, *stages[:-1]]
        assert world.events()[1][0] == first_step
        place = [record.get("event") or record["kind"] for record in world.records]
        assert place.index("train") > max(number for number, name in enumerate(place) if name == "stage")


def test_an_eval_record_has_the_evaluation() -> None:
    world = World()
    trainer(world, steps=3).fit()
    (record,) = world.of("eval")
    assert {**record, "time_s": None} == {
        "kind": "eval",
        "step": 3,
        "epoch": 1.5,
        "time_s": None,
        "top1": 0.5,
        "top5": 1.0,
        "loss": 0.25,
        "num_samples": 2,
        "weights": "model",
        "num_nonfinite": 0,
    }


def test_an_evaluation_that_is_not_finite_is_warned_of_and_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    monkeypatch.setattr(world, "evaluate", lambda step: Evaluation(math.nan, math.nan, math.nan, 2, num_nonfinite=1))
    monkeypatch.setattr(world, "save", lambda *_, **__: None)
    assert trainer(world, steps=4, evaluate_every=2).fit().finished
    assert [record.getMessage() for record in caplog.records if record.name == "resnet_dist.training.trainer"] == [
        f"the evaluation after step {step} is not finite: 1 of 2 samples have logits that are not finite"
        for step in (2, 4)
    ]


def test_weights_are_averaged_after_each_step_but_those_that_were_left_out() -> None:
    world = World(gradients={3: math.inf}, scales_loss=True, skipped=(3,))
    trainer(world, steps=5).fit()
    assert world.averaged == [1, 2, 4, 5]


# --- the ledger


def tallies(micro_batch: int) -> Tallies:
    """Of a micro-batch of two samples of the stream."""
    positions = np.arange(2 * micro_batch, 2 * micro_batch + 2)
    return tallies_of(Stream(NUM_SAMPLES, 0).sample_ids(positions), positions, NUM_SAMPLES)


def ledger(first_step: int = 0, state: Mapping[str, Any] | None = None) -> Ledger:
    return Ledger(Stream(NUM_SAMPLES, 0), BATCH_SIZE, (), first_step, state)


def test_a_complete_epoch_is_an_event_of_its_last_step() -> None:
    world = World(ledger=ledger(), tallies=tallies)
    trainer(world, steps=5, checkpoint_every=2).fit()
    found = [record for record in world.of("event") if record["event"] == "epoch_complete"]
    assert [(record["step"], record["detail"]["epoch"]) for record in found] == [(2, 1), (4, 2)]
    assert all(record["detail"]["num_samples"] == NUM_SAMPLES for record in found)


def test_what_is_saved_with_a_step_covers_that_step_and_no_other() -> None:
    world = World(ledger=ledger(), tallies=tallies)
    saved: dict[int, Any] = {}
    world.save = lambda step, **_: saved.update({step: world.ledger.state()})  # type: ignore[method-assign, union-attr]
    trainer(world, steps=5, checkpoint_every=1).fit()
    assert {step: list(state["tallies"]) for step, state in saved.items()} == {
        1: ["0"],
        2: [],
        3: ["1"],
        4: [],
        5: ["2"],
    }
    resumed = World(ledger=ledger(3, saved[3]), tallies=tallies)
    trainer(resumed, steps=5, first_step=3).fit()
    complete = [
        [r for r in w.records if r.get("event") == "epoch_complete" and r["step"] == 4] for w in (world, resumed)
    ]
    assert complete[0] == complete[1]


def test_a_sample_that_is_missing_ends_the_run_when_the_epoch_does() -> None:
    world = World(ledger=ledger(), tallies=lambda number: tallies(number) if number != 1 else {})
    with pytest.raises(LedgerError, match="epoch 1 had 6 samples, not 8"):
        trainer(world, steps=5).fit()
    assert world.step_number == 3  # the totals of a step are read after the next has been started


# --- broken images


def test_broken_samples_are_counted_for_the_record_and_images_reported_in_the_step_that_met_them() -> None:
    world = World()
    trained = trainer(world, steps=4, checkpoint_every=2)
    sizes, names = np.full(8, 8), tuple(f"{row}.jpg" for row in range(8))
    index = Index("/data", ("c",), names, np.zeros(8, np.int64), sizes, sizes)
    bad = BadImages(DataRecipe(root="/data", on_error="replace", max_bad_images=5), (index, index))
    states: list[dict[str, Any]] = []

    def batches_from(first_step: int) -> Generator[HostBatch, None, None]:
        for number, batch in enumerate(world.batches_from(first_step)):
            if number == 3:
                bad.record([BadImage("3.jpg", "is gone", 1)])
                batch = replace(batch, left_out=LeftOut(np.array([True, False]), 4 / 3))
            yield batch

    def evaluate(step: int) -> Evaluation:
        bad.record([BadImage("v.jpg", "is gone")])
        return replace(EVALUATION, num_bad=1)

    checkpoints = Mock(save=lambda step, **_: states.append({"step": step, **bad.state()}))
    parts = replace(trained.parts, bad=bad, batches_from=batches_from, evaluate=evaluate, checkpoints=checkpoints)
    Trainer(parts, trained.timetable, 2).fit()
    records = world.of("train")
    assert [record["num_left_out"] for record in records] == [0, 1, 1, 1]
    assert [record["top1"] for record in records] == [3 / 4, 1.0, 3 / 4, 3 / 4]
    events = [(record["step"], record["detail"]) for record in world.of("event") if record["event"] == "bad_image"]
    assert events == [
        (2, {"path": "3.jpg", "problem": "is gone", "rank": 1}),
        (4, {"path": "v.jpg", "problem": "is gone", "rank": 0}),
    ]
    assert [(state["step"], state["num_samples"], len(state["images"])) for state in states] == [(2, 1, 1), (4, 1, 2)]
    assert world.of("eval")[0]["num_bad"] == 1


def test_without_broken_images_nothing_of_them_is_recorded() -> None:
    world = World()
    trainer(world, steps=2).fit()
    assert "num_left_out" not in world.of("train")[0]
    assert "num_bad" not in world.of("eval")[0]

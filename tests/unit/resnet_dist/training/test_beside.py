"""Evaluation beside training: which checkpoints are evaluated, and what comes of failures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.checkpoint.format import folder_name
from resnet_dist.training import beside
from resnet_dist.training.beside import Beside, BesideOptions, InTurn, Unavailable, pending_steps


class World:
    """The other process, the sink, and the storage."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints, self.pending = folder / "checkpoints", folder / "pending.json"
        self.started: list[int] = []
        self.results: list[Mapping[str, Any] | Exception | None] = []  # of the evaluation that runs, in turn
        self.records: list[Mapping[str, Any]] = []
        self.closed = 0

    def host(self) -> World:
        return self

    def start(self, step: int) -> None:
        self.started.append(step)

    def ended(self) -> Mapping[str, Any] | Exception | None:
        return self.results.pop(0) if self.results else None

    def close(self) -> None:
        self.closed += 1

    def write(self, record: Mapping[str, object]) -> None:
        self.records.append(record)

    def save(self, *steps: int) -> None:
        for step in steps:
            (self.checkpoints / folder_name(step)).mkdir(parents=True)

    def evaluated(self) -> list[int]:
        return [record["step"] for record in self.records if record["kind"] == "eval"]

    def skipped(self) -> list[int]:
        return [record["step"] for record in self.records if record.get("event") == "evaluation_skipped"]

    def begin(self, first_step: int = 0, host: Callable[[], Any] | None = None) -> Beside:
        options = BesideOptions(host or self.host, self.pending, patience_s=0.0)
        return Beside(options, self.checkpoints, first_step, (0, 1), self, epoch=lambda step: step / 10)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(beside, "POLL_S", 0.0)
    return World(tmp_path)


def test_a_checkpoint_is_evaluated_once_it_is_written_and_the_result_is_a_record_of_its_step(world: World) -> None:
    process = world.begin()
    assert process.take(10, stopping=False)
    process.poll()
    assert world.started == []  # it is still being written
    world.save(10)
    process.poll()
    assert world.started == [10]
    process.poll()
    assert world.evaluated() == []
    world.results = [{"top1": 0.5, "num_samples": 4, "time_s": 1.0}]
    process.poll()
    assert world.records == [
        {"kind": "eval", "step": 10, "epoch": 1.0, "top1": 0.5, "num_samples": 4, "time_s": 1.0, "beside": True}
    ]


def test_a_slow_evaluation_ends_and_of_those_that_wait_the_newest_is_next(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    process = world.begin()
    world.save(10, 20, 30)
    for step in (10, 20, 30):
        process.take(step, stopping=False)
        process.poll()
        assert process.in_use() == {10, step}
    assert world.started == [10]
    assert world.skipped() == [20]
    assert "the evaluation after step 20 is left out: that of step 30 is due" in caplog.text
    world.results = [{"top1": 0.5}, {"top1": 0.75}]
    process.poll()
    process.poll()
    assert world.evaluated() == [10, 30]
    assert process.in_use() == frozenset()


def test_the_end_waits_for_all_that_is_due(world: World) -> None:
    process = world.begin()
    world.save(10, 20)
    for step in (10, 20):
        process.take(step, stopping=False)
        process.poll()
    beats: list[int] = []
    world.results = [None, {"top1": 0.5}, None, {"top1": 0.75}]
    process._options = BesideOptions(world.host, world.pending, patience_s=60)
    process.finish(lambda: beats.append(1), lambda: False)
    assert world.evaluated() == [10, 20]
    assert beats
    assert not world.pending.exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_end_does_not_wait_for_ever_and_says_what_is_left_out(world: World, stopped: bool) -> None:
    process = world.begin()
    world.save(10)
    for step in (10, 20):
        process.take(step, stopping=False)
        process.poll()
    process.finish(lambda: None, lambda: stopped)
    assert world.skipped() == [10, 20]


def test_the_next_attempt_goes_on_with_what_a_kill_has_left(world: World) -> None:
    world.save(10, 20)
    process = world.begin()
    for step in (10, 20):
        process.take(step, stopping=False)
        process.poll()
    assert pending_steps(world.pending) == (10, 20)  # then it is killed
    world.started.clear()
    resumed = world.begin(first_step=20)
    assert resumed.in_use() == {10, 20}
    assert (resumed.left(20), resumed.left(30)) == (True, False)
    assert resumed.take(20, stopping=False)
    world.results = [{"top1": 0.5}, {"top1": 0.75}]
    for _ in range(3):
        resumed.poll()
    assert world.evaluated() == [10, 20]


def test_a_step_that_is_reached_again_or_whose_checkpoint_is_gone_is_not_taken_over(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pending.write_text(json.dumps({"steps": [5, 10, 20]}))
    world.save(10, 20)
    assert world.begin(first_step=10).in_use() == {10}
    assert "the evaluation after step 5 is left out: its checkpoint is gone" in caplog.text


def test_after_a_request_to_stop_the_next_attempt_evaluates(world: World) -> None:
    assert world.begin().take(10, stopping=True)
    assert pending_steps(world.pending) == (10,)


@pytest.mark.parametrize("content", [None, "", "[]", '{"steps": "5"}', '{"steps": ["5"]}', '{"steps": [null]}'])
def test_a_file_that_cannot_be_read_names_no_steps(world: World, content: str | None) -> None:
    if content is not None:
        world.pending.write_text(content)
    assert pending_steps(world.pending) == ()


def test_without_resources_the_workers_evaluate(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def host() -> World:
        raise Unavailable("there is no GPU")

    world.pending.write_text(json.dumps({"steps": [10, 20]}))
    world.save(10, 20)
    with caplog.at_level(logging.WARNING):
        process = world.begin(first_step=20, host=host)
    assert caplog.messages == [
        "evaluate.beside: there is no GPU. The workers evaluate themselves from now on, in turn with training",
        "the evaluation after step 10 is left out: the weights are those of a later step",
    ]
    assert process.left(20)  # the workers do it: they have these weights
    assert not process.take(20, stopping=False)
    assert not process.take(30, stopping=True)
    assert pending_steps(world.pending) == (30,)  # for the next attempt


@pytest.mark.parametrize(
    ("errors", "gives_up"),
    [
        ([Unavailable("no place")], True),
        ([ValueError("broken image"), ValueError("broken image")], True),
        ([ValueError("once"), {"top1": 0.5}, ValueError("and again")], False),
    ],
)
def test_a_failure_leaves_out_its_step_and_a_lasting_one_makes_the_workers_evaluate(
    errors: list[Any], gives_up: bool, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    process = world.begin()
    for number, error in enumerate(errors, 1):
        assert process.take(10 * number, stopping=False)
        world.save(10 * number)
        process.poll()
        world.results = [error]
        process.poll()
    failed = [10 * number for number, error in enumerate(errors, 1) if isinstance(error, Exception)]
    assert world.skipped() == failed
    assert str(errors[0]) in caplog.text
    assert process.take(100, stopping=False) is not gives_up
    assert world.closed == gives_up


def test_in_turn_means_that_nothing_is_taken() -> None:
    process = InTurn()
    assert not process.take(10, stopping=False)
    assert process.in_use() == frozenset()


# --- a start from memory


def test_a_checkpoint_that_was_to_be_evaluated_and_was_never_written_is_lost_for_later_steps(world: World) -> None:
    process = world.begin()
    world.checkpoints.mkdir()
    assert not process.has_lost(5)
    assert process.take(4, stopping=False)
    assert not process.has_lost(4)  # a start from memory saves it first
    assert process.has_lost(5)
    world.save(4)
    assert not process.has_lost(5)


def test_a_checkpoint_that_was_evaluated_and_deleted_is_not_lost(world: World) -> None:
    process = world.begin()
    assert process.take(4, stopping=False)
    world.save(6)
    assert not process.has_lost(7)


def test_the_evaluation_of_the_first_step_is_not_left_out_though_its_checkpoint_is_still_to_be_written(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pending.write_text(json.dumps({"steps": [2, 4]}))
    world.checkpoints.mkdir()
    process = world.begin(first_step=4)
    assert [record.getMessage() for record in caplog.records] == [
        "the evaluation after step 2 is left out: its checkpoint is gone"
    ]
    assert process.left(4)
    assert process.take(4, stopping=False)

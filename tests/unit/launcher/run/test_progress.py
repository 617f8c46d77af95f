"""What is made of an attempt for the next one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import with_micro_batches
from launcher.recovery.history import describe_failure
from launcher.run.directory import RunDirectory
from launcher.run.progress import LostWork, lost_work, recorded_step
from resnet_dist.errors import DivergedError


def test_the_span_that_auto_chose_outlives_another_number_of_micro_batches(write_config: Callable[..., Path]) -> None:
    overrides = ["batch.size=192", "batch.num_micro_batches=auto"]
    config = with_micro_batches(configs.load(write_config(), overrides), 2)
    assert config.batch.num_micro_batches == 2
    assert config.batch_norm.span == 64  # of 192; for the 96 of a micro-batch, auto would be 48


def test_a_number_of_micro_batches_that_is_given_stays(write_config: Callable[..., Path]) -> None:
    config = configs.load(write_config(), ["batch.size=192", "batch.num_micro_batches=2"])
    assert with_micro_batches(config, 3) is config


@pytest.mark.parametrize(("training_began_s", "lost_s"), [(5, 5), (None, 20), (60, 20)])
def test_work_is_lost_since_the_first_step_began(tmp_path: Path, training_began_s: int | None, lost_s: int) -> None:
    run, now = RunDirectory(tmp_path, "small"), time.time()
    run.create()
    run.metrics.write_text(json.dumps({"kind": "train", "step": 3}) + "\n")
    training_began = None if training_began_s is None else now - training_began_s  # 60: of the attempt before
    lost = lost_work(run, 0, now - 20, [], training_began=training_began)
    assert (lost.steps, round(lost.seconds)) == (3, lost_s)


def test_an_attempt_without_a_step_loses_no_work(tmp_path: Path) -> None:
    lost = lost_work(RunDirectory(tmp_path, "small"), 0, time.time() - 20, [])
    assert (lost.steps, lost.seconds) == (0, 0.0)


@pytest.mark.parametrize(("kept_step", "redone", "seconds"), [(12, 1, 8), (9, 3, 24), (None, 3, 24)])
def test_only_the_steps_after_those_in_memory_are_lost(
    tmp_path: Path, kept_step: int | None, redone: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = RunDirectory(tmp_path, "small"), time.time()
    run.create()
    run.metrics.write_text(json.dumps({"kind": "train", "step": 13}) + "\n")
    folder = run.checkpoints / "step-00000010"
    folder.mkdir()
    os.utime(folder, (now - 24, now - 24))
    monkeypatch.setattr("launcher.run.progress._newest_valid", lambda run: folder)
    lost = lost_work(run, 5, now - 60, [], training_began=now - 50, kept_step=kept_step)
    assert (lost.saved_step, lost.steps, round(lost.seconds)) == (10, redone, seconds)
    assert lost.resumed_step == 13 - redone
    assert lost.facts([]).get("kept_step") == (kept_step if kept_step == 12 else None)


def test_an_attempt_that_started_from_memory_has_no_checkpoint_of_that_step(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "small")
    run.create()
    facts = {"place": "local", "from_step": 7}
    run.begin_attempt({**facts, "from_memory_of_rank": 1})
    assert recorded_step(run) == 0
    assert lost_work(run, 7, time.time(), [], from_memory=True).saved_step == 0
    run.begin_attempt(facts)
    assert recorded_step(run) == 7


def test_only_a_divergence_that_other_samples_may_help_has_a_step_to_pass_over() -> None:
    loss = LostWork(first_step=0, last_step=7, saved_step=5, seconds=1.0)
    assert describe_failure(DivergedError(7, float("nan")), 1, loss, None).bad_step == 7
    assert describe_failure(DivergedError(7, 1.0, "the loss scale", by_samples=False), 1, loss, None).bad_step is None

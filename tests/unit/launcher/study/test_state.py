from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.config import load as configs
from launcher.errors import ConfigError
from launcher.study.plan import Plan, PlannedRun
from launcher.study.state import State, measured, read, refuse_changes
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished

RECORDS = [
    {"kind": "event", "event": "started", "step": 0, "detail": {"total_steps": 8}},
    {"kind": "train", "step": 8, "loss": 0.5, "gradient_norm": 2.0},
    {"kind": "eval", "step": 4, "top1": 0.1, "loss": 3.0},
    {"kind": "eval", "step": 8, "top1": 0.75, "train_top1": 1.0, "loss": 1.5, "top5": None},
]


@pytest.fixture
def run(make_plan: MakePlan) -> PlannedRun:
    return make_plan("").runs[0]


def write_records(run: PlannedRun) -> None:
    run.directory.metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def test_a_run_that_has_not_begun_waits(run: PlannedRun) -> None:
    assert read(run) == State("waiting")


def test_a_finished_run_has_the_metrics_of_its_last_records(run: PlannedRun) -> None:
    run.directory.create()
    number = run.directory.begin_attempt()
    write_records(run)
    run.directory.end_attempt(number, 0, "finished", 8)
    run.directory.mark_finished({"step": 8, "time_s": 12.5, "images_per_s": 300.0})
    state = read(run)
    assert (state.status, state.step, state.total_steps, state.seconds) == ("finished", 8, 8, 12.5)
    names = ["top1", "gap", "loss", "train.loss", "train.gradient_norm", "seconds", "steps", "images_per_s", "top5"]
    assert measured(run, state, names) == {
        "top1": 0.75, "gap": 0.25, "loss": 1.5, "train.loss": 0.5, "train.gradient_norm": 2.0, "seconds": 12.5,
        "steps": 8.0, "images_per_s": 300.0,
    }  # fmt: skip


def test_a_failed_run_has_its_reason_and_a_diverged_one_may_be_a_result(run: PlannedRun) -> None:
    run.directory.create()
    run.directory.begin_attempt()
    write_records(run)
    run.directory.mark_fatal(79, "DivergedError: the loss is nan\nmore")
    state = read(run)
    assert (state.status, state.code, state.reason) == ("failed", 79, "DivergedError: the loss is nan")
    assert state.as_result(may_diverge=False) == state
    assert state.as_result(may_diverge=True).status == "diverged"
    assert replace(state, code=76).as_result(may_diverge=True).status == "failed"


def test_a_run_that_stopped_can_go_on(run: PlannedRun) -> None:
    run.directory.create()
    run.directory.begin_attempt()
    assert read(run).status == "stopped"


def test_a_function_of_the_user_measures_a_run(run: PlannedRun) -> None:
    found = measured(run, finished(top1=0.5), ["tests.unit.launcher.study.test_state:path_and_number", "top1"])
    assert found == {"length": float(len(str(run.directory.path))), "top1": 0.5}


def path_and_number(run: object) -> dict[str, object]:
    return {"length": len(str(run.path)), "name": "no number"}  # type: ignore[attr-defined]


def begun(plan: Plan) -> None:
    for run in plan.runs:
        run.directory.create()
        run.directory.write_config(configs.to_yaml(run.config))


def test_the_same_study_goes_on(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {batch.size: [8, 16]}")
    begun(plan)
    refuse_changes(plan.runs)


@pytest.mark.parametrize("change", ["duration=9 steps", "schedule.peak_lr=0.06", "optimizer.momentum=0.8"])
def test_a_study_whose_runs_have_changed_is_refused(make_plan: MakePlan, change: str) -> None:
    text = "grid: {batch.size: [8, 16]}"
    begun(make_plan(text))
    key = change.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: the run size-8_seed-0 has .*; or delete the folder .*seed-0$"):
        refuse_changes(make_plan(text, change).runs)


def test_where_the_images_are_and_how_fast_steps_are_may_change(make_plan: MakePlan) -> None:
    begun(make_plan(""))
    refuse_changes(make_plan("", "data.root=elsewhere", "speed.channels_last=false").runs)


def test_a_metric_at_a_step_is_of_the_last_evaluation_before_it_else_of_training() -> None:
    state = State("stopped", step=8, total_steps=8, records=RECORDS)
    assert state.value_at(8, "loss") == ("eval", 1.5)
    assert state.value_at(7, "loss") == ("eval", 3.0)
    assert state.value_at(8, "train.loss") == ("train", 0.5)
    assert state.value_at(8, "loss", "train") == ("train", 0.5)
    assert state.value_at(3, "loss") is None

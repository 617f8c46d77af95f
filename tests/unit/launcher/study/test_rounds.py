from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from launcher.study.rounds import Round, next_round
from launcher.study.state import State
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states, stopped

TUNE = (
    "grid: {optimizer.nesterov: [false, true], schedule.peak_lr: [0.1, 0.2]}\nseeds: [0, 1]\n"
    "tune: {keys: [schedule.peak_lr], by: top1, seeds: [0]}"
)
HALVING = "grid: {schedule.peak_lr: [0.1, 0.2, 0.4, 0.8]}\nhalving: {at: [0.25, 0.5], by: loss, keep: 0.5}"


def names(found: Round) -> list[str]:
    return [job.run.name for job in found.jobs]


def test_all_runs_that_have_not_ended_come_next(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {batch.size: [8, 16, 32, 64]}")
    found = next_round(
        plan, states(plan, {"-8_": finished(), "-16_": State("failed"), "-32_": stopped(3), "-64_": State("diverged")})
    )
    assert names(found) == ["size-32_seed-0"]
    assert len(found.results) == 4
    assert found.is_last


def test_a_tuning_first_runs_the_candidates_on_its_own_seeds(make_plan: MakePlan) -> None:
    plan = make_plan(TUNE)
    found = next_round(plan, states(plan, {"nesterov-false": finished(top1=0.5)}))
    assert names(found) == ["nesterov-true_peak_lr-0.1_seed-0", "nesterov-true_peak_lr-0.2_seed-0"]
    assert not found.is_last
    assert not found.results


def test_a_tuning_then_runs_the_best_value_of_each_other_combination_on_all_seeds(make_plan: MakePlan) -> None:
    plan = make_plan(TUNE)
    found = next_round(plan, states(plan, {
        "nesterov-false_peak_lr-0.1_seed-0": finished(top1=0.6),
        "nesterov-false_peak_lr-0.2_seed-0": finished(top1=0.5),
        "nesterov-true_peak_lr-0.1_seed-0": State("diverged", code=79),
        "nesterov-true_peak_lr-0.2_seed-0": finished(top1=0.4),
    }))  # fmt: skip
    assert [run.name for run in found.results] == [
        "nesterov-false_peak_lr-0.1_seed-0", "nesterov-false_peak_lr-0.1_seed-1",
        "nesterov-true_peak_lr-0.2_seed-0", "nesterov-true_peak_lr-0.2_seed-1",
    ]  # fmt: skip
    assert names(found) == ["nesterov-false_peak_lr-0.1_seed-1", "nesterov-true_peak_lr-0.2_seed-1"]
    assert found.is_last


def test_a_loss_is_tuned_to_its_smallest_value(make_plan: MakePlan) -> None:
    plan = make_plan(TUNE.replace("by: top1", "by: loss"))
    given = states(plan, {"peak_lr-0.1_seed-0": finished(loss=2.0), "peak_lr-0.2_seed-0": finished(loss=1.0)})
    assert {run.config.schedule.peak_lr for run in next_round(plan, given).results} == {0.2}


def test_halving_begins_with_the_first_part_of_all_runs(make_plan: MakePlan) -> None:
    plan = make_plan(HALVING)
    found = next_round(plan, states(plan, {"-0.1_": stopped(2, loss=1.0), "-0.2_": stopped(1, loss=1.0)}))
    assert names(found) == ["peak_lr-0.2_seed-0", "peak_lr-0.4_seed-0", "peak_lr-0.8_seed-0"]
    assert {job.pause_at for job in found.jobs} == {Fraction(1, 4)}
    assert not found.is_last


def test_after_each_part_only_the_best_fraction_goes_on(make_plan: MakePlan) -> None:
    plan = make_plan(HALVING)
    given = states(plan, {
        "-0.1_": stopped(2, loss=2.0), "-0.2_": stopped(2, loss=1.0), "-0.4_": stopped(2, loss=1.5),
        "-0.8_": State("failed", code=79),
    })  # fmt: skip
    second = next_round(plan, given)
    assert names(second) == ["peak_lr-0.2_seed-0", "peak_lr-0.4_seed-0"]
    assert {job.pause_at for job in second.jobs} == {Fraction(1, 2)}
    for rate, loss in (("0.2", 0.9), ("0.4", 0.8)):
        before = given[f"peak_lr-{rate}_seed-0"]
        after = stopped(4, loss=loss)
        given[f"peak_lr-{rate}_seed-0"] = replace(after, records=[*before.records, *after.records])
    last = next_round(plan, given)
    assert [(job.run.name, job.pause_at) for job in last.jobs] == [("peak_lr-0.4_seed-0", None)]
    assert last.is_last
    assert [run.name for run in last.results] == ["peak_lr-0.4_seed-0"]
    assert last.dropped == {"peak_lr 0.1": Fraction(1, 4), "peak_lr 0.8": Fraction(1, 4), "peak_lr 0.2": Fraction(1, 2)}


def test_halving_decides_by_what_was_measured_then_not_later(make_plan: MakePlan) -> None:
    """A run that went on, in a session before, is judged by its value at the end of the part."""
    plan = make_plan("grid: {schedule.peak_lr: [0.1, 0.2]}\nhalving: {at: [0.5], by: loss, keep: 0.5}")
    records = [{"kind": "eval", "step": 4, "loss": 3.0}, {"kind": "eval", "step": 8, "loss": 0.1}]
    ahead = State("finished", step=8, total_steps=8, records=records)
    found = next_round(plan, states(plan, {"-0.1_": ahead, "-0.2_": stopped(4, loss=2.0)}))
    assert names(found) == ["peak_lr-0.2_seed-0"]


def test_halving_compares_training_losses_if_not_all_runs_were_evaluated(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {schedule.peak_lr: [0.1, 0.2]}\nhalving: {at: [0.5], by: loss, keep: 0.5}")
    evaluated = [{"kind": "train", "step": 4, "loss": 2.5}, {"kind": "eval", "step": 4, "loss": 1.0}]
    trained = [{"kind": "train", "step": 4, "loss": 2.0}]
    given = {
        "-0.1_": State("stopped", step=4, total_steps=8, records=evaluated),
        "-0.2_": State("stopped", step=4, total_steps=8, records=trained),
    }
    assert names(next_round(plan, states(plan, given))) == ["peak_lr-0.2_seed-0"]

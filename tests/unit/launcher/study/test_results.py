from __future__ import annotations

import csv
import json

import pytest

from launcher.study import results
from launcher.study.plan import Plan
from launcher.study.results import Results, collect, comparison_rows, lines, result_rows, to_csv, to_json
from launcher.study.rounds import next_round
from launcher.study.state import State
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states

TEXT = (
    "hypothesis: The skip helps.\ngrid: {optimizer.nesterov: [false, true], batch.size: [8, 16]}\nseeds: [0, 1, 2]\n"
    "metrics: [top1, loss]\ncompare: {baseline: {optimizer.nesterov: false}}\nmay_diverge: true"
)
TOP1 = {"false_size-8": (0.80, 0.82, 0.84), "true_size-8": (0.85, 0.87, 0.89), "false_size-16": (0.7, 0.8, 0.9)}


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(TEXT)


@pytest.fixture
def found(plan: Plan) -> Results:
    given = {
        f"{name}_seed-{seed}": finished(top1=top1, loss=2.0)
        for name, values in TOP1.items() for seed, top1 in enumerate(values)
    }  # fmt: skip
    given |= {"true_size-16_seed-0": finished(top1=0.8, loss=2.0), "true_size-16_seed-1": State("diverged", code=79)}
    given |= {"true_size-16_seed-2": State("failed", "OutOfMemory: too large", code=76)}
    now = states(plan, given)
    return collect(plan, next_round(plan, now), now)


def test_the_table_has_mean_interval_deviation_and_number_of_seeds(found: Results) -> None:
    head, first, *_, last = result_rows(found)
    assert head == ["nesterov", "size", "n", "top1 (%)", "loss"]
    assert first == ["false", "8", "3", "82.00 ± 4.97 (2.00)", "2 ± 0 (0)"]
    assert last == ["true", "16", "1 of 3 (1 diverged)", "80.00", "2"]


def test_a_comparison_is_with_the_same_other_values_and_paired_by_seed(found: Results) -> None:
    first, second = found.comparisons
    assert first.point.axes == {"optimizer.nesterov": True, "batch.size": 8}
    assert first.baseline.axes == {"optimizer.nesterov": False, "batch.size": 8}
    assert first.difference is not None
    assert (first.difference.n, first.verdict) == (3, "larger")
    assert first.difference.mean == pytest.approx(0.05)
    assert second.difference is not None
    assert (second.difference.n, second.verdict) == (1, "inconclusive")


def test_the_text_says_what_is_inconclusive_and_which_run_failed_and_why(found: Results) -> None:
    text = "\n".join(lines(found))
    assert text.startswith("hypothesis: The skip helps.\n")
    assert "nesterov true, size 8   nesterov false  +5.00" in text
    assert "inconclusive" in text
    assert "failed: nesterov-true_size-16_seed-2: exit code 76: OutOfMemory: too large" in text
    assert "seed-1: exit code" not in text  # may_diverge


def test_the_csv_has_a_line_for_each_run(found: Results) -> None:
    rows = list(csv.DictReader(to_csv(found).splitlines()))
    assert len(rows) == 12
    assert rows[0] == {
        "run": "nesterov-false_size-8_seed-0", "optimizer.nesterov": "false", "batch.size": "8", "seed": "0",
        "status": "finished", "counts": "yes", "top1": "0.8", "loss": "2.0", "seconds": "10.000", "reason": "",
    }  # fmt: skip
    assert [row["status"] for row in rows[-3:]] == ["finished", "diverged", "failed"]


def test_the_json_has_all_numbers(found: Results) -> None:
    content = json.loads(to_json(found, {"command": "launcher study x.yaml"}))
    assert (content["study"], content["command"]) == ("small", "launcher study x.yaml")
    metric = content["rows"][0]["metrics"]["top1"]
    assert metric["by_seed"] == {"0": 0.8, "1": 0.82, "2": 0.84}
    assert (metric["n"], metric["mean"]) == (3, pytest.approx(0.82))
    assert content["comparisons"][0]["verdict"] == "larger"
    assert content["runs"][0]["values"] == {"optimizer.nesterov": False, "batch.size": 8}


def test_a_baseline_may_be_a_set(make_plan: MakePlan) -> None:
    plan = make_plan(
        "sets:\n  - {label: none, batch.size: 8}\n  - {label: l2, batch.size: 8, optimizer.weight_decay: 0.1}\n"
        "compare: {baseline: {label: none}}"
    )
    now = states(plan, {"none": finished(top1=0.5), "l2": finished(top1=0.6)})
    (one,) = collect(plan, next_round(plan, now), now).comparisons
    assert (one.point.text(), one.baseline.text(), one.verdict) == ("l2", "none", "inconclusive")


def test_a_comparison_without_a_common_seed_has_no_data(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {batch.size: [8, 16]}\nseeds: [0, 1]\ncompare: {baseline: {batch.size: 8}}")
    now = states(plan, {"-8_seed-0": finished(top1=0.5), "-16_seed-1": finished(top1=0.6)})
    found = collect(plan, next_round(plan, now), now)
    assert comparison_rows(found)[1][-2:] == ["0", "no data"]


def test_metrics_of_a_function_get_columns_of_their_own(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("metrics: [top1, 'my_module:measure']")
    now = states(plan, {"seed-0": finished(top1=0.5)})
    monkeypatch.setattr(results, "measured", lambda run, state, names: {"top1": 0.5, "zeros": 0.25})
    found = collect(plan, next_round(plan, now), now)
    assert result_rows(found)[0] == ["n", "top1 (%)", "zeros"]


def test_candidates_of_a_tuning_are_in_the_csv_and_not_in_the_table(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {batch.size: [8, 16]}\nseeds: [0, 1]\ntune: {keys: [batch.size], seeds: [0]}")
    now = states(plan, {"size-8_": finished(top1=0.5), "size-16_seed-0": finished(top1=0.4)})
    found = collect(plan, next_round(plan, now), now)
    assert [row[:2] for row in result_rows(found)[1:]] == [["8", "2"]]
    counts = {row["run"]: row["counts"] for row in csv.DictReader(to_csv(found).splitlines())}
    assert counts == {"size-8_seed-0": "yes", "size-8_seed-1": "yes", "size-16_seed-0": "no", "size-16_seed-1": "no"}


def test_before_the_first_results_the_text_says_how_many_runs_are_done(make_plan: MakePlan) -> None:
    plan = make_plan("grid: {batch.size: [8, 16]}\nseeds: [0, 1]\ntune: {keys: [batch.size], seeds: [0]}")
    now = states(plan, {"size-8_": finished(top1=0.5)})
    found = collect(plan, next_round(plan, now), now)
    assert list(lines(found)) == ["no results yet: 2 of at most 3 runs finished"]

from __future__ import annotations

from typing import Any

import pytest

from launcher.study.results import Results, collect
from launcher.study.rounds import next_round
from launcher.study.schema import Figure
from launcher.study.series import Series, series
from launcher.study.state import State
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states

TEXT = "grid: {optimizer.nesterov: [false, true], batch.size: [16, 8]}\nseeds: [0, 1]\n"


def results(make_plan: MakePlan, given: dict[str, State], text: str = TEXT) -> Results:
    plan = make_plan(text)
    now = states(plan, given)
    return collect(plan, next_round(plan, now), now)


def with_layers(*norms: float) -> State:
    records: list[dict[str, Any]] = [
        {
            "kind": "layers",
            "step": step,
            "layers": {f"layer{number}": {"gradient_norm": norm * step} for number, norm in enumerate(norms)},
        }
        for step in (1, 5)
    ]
    return State("finished", step=8, total_steps=8, records=records)


def test_a_line_has_mean_and_interval_at_ascending_numbers(make_plan: MakePlan) -> None:
    found = results(make_plan, {
        "false_size-16": finished(top1=0.5), "false_size-8_seed-0": finished(top1=0.6),
        "false_size-8_seed-1": finished(top1=0.8),
    }, TEXT + "figures: [{kind: line, x: batch.size, y: top1}]")  # fmt: skip
    (line,) = series(found.plan.file.study.figures[0], found)
    assert (line.label, line.x) == ("nesterov false", [8, 16])
    assert line.mean == pytest.approx([70.0, 50.0])
    assert line.low == pytest.approx([70.0 - 127.06, 50.0], abs=0.01)  # t(0.975, 1) 0.1414 / sqrt(2) = 1.2706
    assert line.high == pytest.approx([70.0 + 127.06, 50.0], abs=0.01)


def test_values_that_are_not_numbers_keep_the_order_of_the_study(make_plan: MakePlan) -> None:
    found = results(make_plan, {"seed": finished(top1=0.5)}, TEXT + "metrics: [top1]")
    lines = series(Figure(kind="bar", x="optimizer.nesterov", y="top1"), found)
    assert [(line.label, line.x) for line in lines] == [("size 16", [False, True]), ("size 8", [False, True])]


def test_a_curve_has_mean_and_range_over_the_seeds_at_the_steps_that_all_have(make_plan: MakePlan) -> None:
    one, other = finished(8), finished(12)
    found = results(make_plan, {"true_size-8_seed-0": one, "true_size-8_seed-1": other})
    figure = Figure(kind="curve", y="train.loss", by=())
    assert series(figure, found) == []  # steps 4, 8 and 6, 12
    found = results(make_plan, {"true_size-8_seed-0": one, "true_size-8_seed-1": finished(8, loss=1.0)})
    assert series(figure, found) == [Series("", "", [4, 8], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5])]


def test_layers_are_numbered_in_the_order_of_the_network(make_plan: MakePlan) -> None:
    given = {"true_size-8_seed-0": with_layers(1.0, 3.0), "true_size-8_seed-1": with_layers(2.0, 5.0)}
    found = results(make_plan, given)
    expected = [Series("nesterov true, size 8", "nesterov true", [1, 2], [1.5, 4.0], [1.0, 3.0], [2.0, 5.0])]
    assert series(Figure(kind="layers", y="gradient_norm"), found) == expected


def test_a_figure_of_a_tuned_key_shows_the_candidates(make_plan: MakePlan) -> None:
    text = TEXT + "tune: {keys: [batch.size], seeds: [0]}"
    found = results(make_plan, {"size-8": finished(top1=0.6), "size-16_seed-0": finished(top1=0.5)}, text)
    tuned = series(Figure(kind="line", x="batch.size", y="top1"), found)
    assert [(line.label, line.x) for line in tuned] == [("nesterov false", [8, 16]), ("nesterov true", [8, 16])]
    (chosen,) = series(Figure(kind="bar", x="optimizer.nesterov", y="top1"), found)
    assert chosen.x == [False, True]
    assert chosen.mean == pytest.approx([60.0, 60.0])

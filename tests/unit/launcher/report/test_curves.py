"""Curves with as many points as a page can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher.report.charts import Axis, charts, svg, words
from launcher.report.curves import curves
from launcher.report.run_record import read
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]


def train(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": step / 4, "loss": loss, "step_time_s": 0.5, **more}


def test_few_records_are_points_of_their_own(write_run: WriteRun) -> None:
    found = curves(read(write_run(records=[train(10, 2.0), train(20, None), train(30, 1.0)])), "train", 5)
    assert (found.step, found.epoch, found.time_s) == ([10, 20, 30], [2.5, 5.0, 7.5], [5.0, 10.0, 15.0])
    loss = found.points["train_loss"]
    assert loss.mean == [2.0, None, 1.0]
    assert loss.low is loss.mean
    assert found.records_per_point == 1


def test_many_records_keep_their_mean_and_their_extremes(write_run: WriteRun) -> None:
    losses = [1.0, 3.0, 2.0, 10.0, 2.0, None, 4.0, 5.0]
    found = curves(read(write_run(records=[train(step, loss) for step, loss in enumerate(losses, 1)])), "train", 4)
    loss = found.points["train_loss"]
    assert found.step == [2, 4, 6, 8]
    assert loss.mean == [2.0, 6.0, 2.0, 4.5]
    assert loss.low == [1.0, 2.0, 2.0, 4.0]
    assert loss.high == [3.0, 10.0, 2.0, 5.0]
    assert found.records_per_point == 2


def test_quantities_without_a_value_and_those_of_another_type_are_left_out(write_run: WriteRun) -> None:
    records = [train(1, None, trust_ratio_min="high", gradient_norm=True), train(2, None)]
    found = curves(read(write_run(records=records)), "train", 5)
    assert set(found.points) == {"data_wait"}


def test_a_run_without_epochs_has_steps(write_run: WriteRun) -> None:
    run = read(write_run(records=[{"kind": "train", "step": 5, "loss": 1.0}]))
    found = curves(run, "train", 5)
    assert found.epoch is None
    [chart] = charts([("run", found, curves(run, "eval", 5))])
    assert not chart.by_epoch
    assert words(chart) == "training batches: 1 at step 5, 1 at step 5; lowest 1 at step 5."


def test_a_chart_says_in_words_what_its_curves_do(write_run: WriteRun) -> None:
    run = read(write_run())
    drawn = charts([("run", curves(run, "train", 50), curves(run, "eval", 50))])
    by_name = {chart.kind.id: chart for chart in drawn}
    assert "val: 22.50 % at epoch 0.5, 90.00 % at epoch 2; highest 90.00 % at epoch 2." in words(by_name["top1"])
    drawing = svg(by_name["loss"], "one")
    assert 'role="img" aria-labelledby="one-t one-d"' in drawing
    assert '<title id="one-t">Loss</title>' in drawing
    assert "lowest 0.1 at epoch 2." in drawing


def test_a_loss_over_many_powers_of_ten_is_drawn_on_a_logarithmic_axis(write_run: WriteRun) -> None:
    run = read(write_run(records=[train(1, 2.0), train(2, 1e21)]))
    [loss] = [
        one for one in charts([("run", curves(run, "train", 9), curves(run, "eval", 9))]) if one.kind.id == "loss"
    ]
    assert loss.log
    assert "1e+20" in svg(loss, "one")


@pytest.mark.parametrize(("other", "log"), [(0.2, False), (80_000.0, True)])
def test_learning_rates_of_runs_that_are_far_apart_have_a_logarithmic_axis(
    write_run: WriteRun, other: float, log: bool
) -> None:
    runs = []
    for name, peak in (("a", 0.1), ("b", other)):
        records = [{**train(step, 2.0), "learning_rate": rate} for step, rate in ((1, peak), (2, 1e-6))]
        run = read(write_run(name, records))
        runs.append((name, curves(run, "train", 9), curves(run, "eval", 9)))
    assert [one.log for one in charts(runs) if one.kind.id == "lr"] == [log]


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.0, 3.0, None), (-1e-9, 2e-9, None)]
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float] | None) -> None:
    axis = Axis.around([low, high], 0, 100)
    found = axis.ticks()
    assert 2 <= len(found) <= 7
    assert all(-0.01 <= axis.at(tick) <= 100.01 for tick in found)
    if ticks is not None:
        assert found == pytest.approx(ticks)

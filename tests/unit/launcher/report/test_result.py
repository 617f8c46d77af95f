"""The accuracy of a run with its label and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from launcher.report.result import Accuracy, result
from launcher.report.run_record import read
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]


def evaluated(step: int, top1: float | None, **more: Any) -> dict[str, Any]:
    record = {"kind": "eval", "step": step, "epoch": step / 10, "top1": top1, "loss": 0.5, "num_samples": 400}
    return {**record, "weights": "model", **more}


@pytest.mark.parametrize("num_samples", [1, 10, 355, 50_000])
@pytest.mark.parametrize("top1", [0.0, 0.3, 0.99, 1.0])
def test_wilsons_interval_has_the_bounds_that_the_score_test_just_accepts(top1: float, num_samples: int) -> None:
    low, high = Accuracy(top1, num_samples).interval
    assert 0 <= low <= top1 <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(top1 - bound) / math.sqrt(bound * (1 - bound) / num_samples) == pytest.approx(1.96, abs=1e-3)


def test_a_difference_counts_if_it_is_larger_than_the_sampling_error() -> None:
    of_imagenet = Accuracy(0.759, 50_000)
    assert not of_imagenet.differs_from(Accuracy(0.757, 50_000))
    assert of_imagenet.differs_from(Accuracy(0.750, 50_000))
    assert not Accuracy(1.0, 10).differs_from(Accuracy(1.0, 10))


def test_the_last_and_the_best_evaluation_with_what_they_are_measured_on(write_run: WriteRun) -> None:
    records = [evaluated(5, 0.5), evaluated(10, 0.8, num_bad=2), evaluated(15, 0.7, num_bad=2, weights="ema")]
    run = write_run(records=records)
    run.config.write_text(f"{run.config.read_text()}precision: bfloat16\n")
    found = result(read(run))
    assert found.accuracy == Accuracy(0.7, 400)
    assert found.best is not None
    assert found.best.step == 10
    assert found.label == (
        "400 val images without 2 broken ones at 32 px, central crop 1, moving average of the weights, bfloat16"
    )


def test_an_evaluation_that_is_not_finite_has_no_accuracy(write_run: WriteRun) -> None:
    found = result(read(write_run(records=[evaluated(5, 0.5), evaluated(10, None, num_nonfinite=3)])))
    assert found.accuracy is None
    assert found.last is not None
    assert found.last.num_nonfinite == 3
    assert found.best is not None
    assert found.best.step == 5


@pytest.mark.parametrize("num_samples", [-4, 0, None])
def test_an_accuracy_needs_images(write_run: WriteRun, num_samples: int | None) -> None:
    found = result(read(write_run(records=[evaluated(5, 0.5, num_samples=num_samples)])))
    assert found.accuracy is None


def test_what_is_not_recorded_is_called_so(write_run: WriteRun) -> None:
    run = write_run(records=[evaluated(5, 0.5, weights=None)])
    run.config.unlink()
    parts = "400 val images, resolution not recorded, crop not recorded, weights not recorded, precision not recorded"
    assert result(read(run)).label == parts


def test_without_metrics_the_summary_has_the_result(write_run: WriteRun) -> None:
    run = write_run(records=[])
    run.mark_finished({"step": 40, "top1": 0.75, "num_samples": 400, "duration": "40 steps"})
    assert result(read(run)).accuracy == Accuracy(0.75, 400)

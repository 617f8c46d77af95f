"""Runs by their result, and how far the order can be trusted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from launcher.report.ranking import lines, ranked, verdict, warnings
from launcher.report.run_record import RunRecord, read_all
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]


def run_with(write_run: WriteRun, name: str, top1: float | None, **more: Any) -> RunDirectory:
    record = {"kind": "eval", "step": 10, "epoch": 1.0, "top1": top1, "loss": 0.5, "num_samples": 355}
    return write_run(name, [{**record, "weights": "model", **more}])


def read_runs(*runs: RunDirectory) -> list[RunRecord]:
    return read_all(runs)


def test_the_highest_top1_comes_first_and_a_run_without_one_last(write_run: WriteRun) -> None:
    runs = [run_with(write_run, name, top1) for name, top1 in (("a", 0.9), ("b", None), ("c", 0.98))]
    rows = ranked(read_runs(*runs))
    assert [(row.place, row.run.name) for row in rows] == [(1, "c"), (2, "a"), (None, "b")]
    assert [row.is_separated for row in rows] == [False, True, False]
    assert verdict(rows) == "c has the highest top-1, by more than the sampling error of the val images"


def test_of_equal_accuracies_the_lower_loss_comes_first(write_run: WriteRun) -> None:
    runs = [run_with(write_run, name, 0.9, loss=loss) for name, loss in (("a", 0.7), ("b", 0.3))]
    assert [row.run.name for row in ranked(read_runs(*runs))] == ["b", "a"]


def test_equal_accuracies_have_equal_places(write_run: WriteRun) -> None:
    runs = [run_with(write_run, name, top1) for name, top1 in (("a", 0.9), ("b", 0.9), ("c", 0.89), ("d", 0.5))]
    assert [row.place for row in ranked(read_runs(*runs))] == [1, 1, 3, 4]
    assert verdict(ranked(read_runs(*runs[:2]))) == "a and b have the same top-1"
    assert verdict(ranked(read_runs(runs[0], runs[1], runs[3]))) == (
        "a and b have the same top-1, which is the highest, by more than the sampling error of the val images"
    )
    assert verdict(ranked(read_runs(*runs))) == (
        "a and b have the same top-1, which is the highest, but the difference to c is within the sampling error of "
        "the val images; they are ahead of 1 other run"
    )


def test_a_small_lead_is_not_called_one(write_run: WriteRun) -> None:
    runs = [run_with(write_run, name, top1) for name, top1 in (("a", 0.985), ("b", 0.98), ("c", 0.5))]
    assert verdict(ranked(read_runs(*runs))) == (
        "a has the highest top-1, but the difference to b is within the sampling error of the val images; it is ahead"
        " of 1 other run"
    )


def test_runs_on_different_images_or_with_other_labels_are_warned_of(write_run: WriteRun) -> None:
    same = ranked(read_runs(run_with(write_run, "a", 0.9), run_with(write_run, "b", 0.8)))
    assert warnings(same) == []
    other = ranked(read_runs(run_with(write_run, "a", 0.9), run_with(write_run, "c", 0.8, num_samples=10_000)))
    assert warnings(other)[0].startswith("The runs were evaluated on different images (a: 355 of /images, c: 10000 of")
    assert warnings(other)[0].endswith("): their accuracies cannot be compared")
    assert verdict(other) == ""
    assert [text.startswith("warning: ") for text in list(lines(other))[3:5]] == [True, True]
    longer = run_with(write_run, "e", 0.8)
    longer.config.write_text(longer.config.read_text().replace("12 epochs", "20 epochs"))
    [warning] = warnings(ranked(read_runs(run_with(write_run, "a", 0.9), longer)))
    assert warning.startswith("The runs have different durations (a: 12 epochs, e: 20 epochs)")
    average = ranked(read_runs(run_with(write_run, "a", 0.9), run_with(write_run, "d", 0.8, weights="ema")))
    [warning] = warnings(average)
    assert warning.startswith("The accuracies were measured in different ways (a: 355 val images")
    assert "moving average of the weights" in warning


def test_runs_that_are_not_finished_are_named(write_run: WriteRun) -> None:
    unfinished = functools.partial(write_run, finish=False)
    runs = [run_with(write_run, "a", 0.9), run_with(unfinished, "b", 0.9), run_with(unfinished, "c", 0.9)]
    assert warnings(ranked(read_runs(*runs[:2])))[-1] == "Not finished: b. Its last evaluation is of an earlier step"
    assert warnings(ranked(read_runs(*runs)))[-1].startswith("Not finished: b, c. Their last evaluation")


def test_runs_of_the_same_name_are_told_apart(write_run: WriteRun, tmp_path: Any) -> None:
    first = run_with(write_run, "a", 0.9)
    other = RunDirectory(tmp_path / "other", "a")
    first.path.rename(tmp_path / "moved")
    other.storage.mkdir()
    (tmp_path / "moved").rename(other.path)
    again = run_with(write_run, "a", 0.9)
    assert [run.name for run in read_runs(again, other)] == [f"{tmp_path.name}/a", "other/a"]

"""Which checkpoints stay: the newest, the best, periodic ones, and always at least one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.restore import newest
from resnet_dist.checkpoint.retention import Candidate, Retention, metric_of
from resnet_dist.recipe.durations import Duration, Every

Save = Callable[[Path, CheckpointContent, Retention], Path]

TOP1 = {10: 0.2, 20: 0.6, 30: 0.9, 40: 0.9, 50: 0.5, 60: 0.4}


def stays(retention: Retention, metrics: dict[int, float | None]) -> list[int]:
    candidates = [Candidate(step, is_complete=True, metric=metric) for step, metric in metrics.items()]
    to_delete = retention.to_delete(candidates)
    assert to_delete == sorted(to_delete, reverse=True)
    return [step for step in metrics if step not in to_delete]


def test_the_newest_stay() -> None:
    assert stays(Retention(keep=2), TOP1) == [50, 60]
    assert stays(Retention(keep=6), TOP1) == list(TOP1)


def test_the_best_stay_beside_the_newest_and_of_equals_the_later() -> None:
    assert stays(Retention(keep=1, keep_best=1), TOP1) == [40, 60]
    assert stays(Retention(keep=1, keep_best=3), TOP1) == [20, 30, 40, 60]


def test_a_best_one_among_the_newest_takes_no_place_of_another() -> None:
    assert stays(Retention(keep=3, keep_best=2), TOP1) == [30, 40, 50, 60]


def test_a_low_loss_is_a_good_one() -> None:
    losses = {10: 0.1, 20: 3.0, 30: 2.0}
    assert stays(Retention(keep=1, keep_best=1, metric="loss"), losses) == [10, 30]


def test_one_that_was_not_evaluated_is_never_among_the_best() -> None:
    assert stays(Retention(keep=1, keep_best=2), {10: None, 20: 0.1, 30: None, 40: None}) == [20, 40]


@pytest.mark.parametrize("metric", ["top1", "loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_whose_metric_is_not_finite_is_never_among_the_best(metric: str, value: float) -> None:
    metrics = {10: 0.1, 20: value, 30: 0.1, 40: value, 50: value}
    assert stays(Retention(keep=1, keep_best=2, metric=metric), metrics) == [10, 30, 50]


def test_one_of_each_period_stays() -> None:
    every = Duration(Fraction(20), "steps")
    assert stays(Retention(keep=1, keep_every=every), dict.fromkeys(range(10, 80, 10))) == [20, 40, 60, 70]


@pytest.mark.parametrize(
    ("every", "kept"),
    [("20 steps", [20, 40, 60]), ("2000 samples", [20, 40, 60]), ("0.5 epochs", [30, 60]), ("2500 samples", [30, 50])],
)
def test_a_period_is_converted_to_steps(every: str, kept: list[int]) -> None:
    retention = Retention(keep=1, keep_every=Duration.parse(every)).in_steps(batch_size=100, num_samples=6000)
    assert stays(retention, dict.fromkeys(range(10, 80, 10))) == [*kept, 70]


def test_where_none_was_written_at_that_very_step_the_next_one_stays() -> None:
    every = Duration(Fraction(20), "steps")
    assert stays(Retention(keep=1, keep_every=every), dict.fromkeys([15, 22, 29, 30, 45, 59, 60, 79])) == [
        22,
        45,
        60,
        79,
    ]


def test_the_periodic_ones_do_not_change_while_the_run_goes_on() -> None:
    retention = Retention(keep=2, keep_every=Duration(Fraction(7, 2), "steps"))
    present: list[int] = []
    for step in range(1, 60):
        present = stays(retention, dict.fromkeys([*present, step]))
    assert present == sorted({58, 59} | {step for step in range(1, 60) if Every(Fraction(7), 2).fires_after(step)})


@given(
    st.lists(st.tuples(st.booleans(), st.none() | st.floats(0, 1)), max_size=12),
    st.builds(
        Retention,
        keep=st.integers(1, 4),
        keep_best=st.integers(0, 4),
        keep_every=st.none() | st.builds(Duration, st.integers(1, 5).map(Fraction), st.just("steps")),
    ),
)
def test_nothing_is_deleted_before_enough_better_ones_exist(
    checkpoints: list[tuple[bool, float | None]], retention: Retention
) -> None:
    candidates = [Candidate(step, *checkpoint) for step, checkpoint in enumerate(checkpoints, start=1)]
    to_delete = retention.to_delete(candidates)
    complete = [candidate.step for candidate in candidates if candidate.is_complete]
    assert set(complete[-retention.keep :]).isdisjoint(to_delete)
    if to_delete:
        assert len([step for step in complete if step > max(to_delete)]) >= retention.keep
    # The result does not change when the policy is applied again.
    assert retention.to_delete(candidate for candidate in candidates if candidate.step not in to_delete) == []


@pytest.mark.parametrize(
    ("state", "metric"),
    [
        ({"metrics": {"top1": 0.5}}, 0.5),
        ({"metrics": {"top1": 1}}, 1.0),
        ({"metrics": {"top1": None}}, None),
        ({"metrics": {"top1": "high"}}, None),
        ({"metrics": {"top1": float("nan")}}, None),
        ({"metrics": {"loss": 0.5}}, None),
        ({"metrics": 3}, None),
        ({}, None),
        ([], None),
    ],
)
def test_a_metric_is_read_from_the_state_where_there_is_one(state: object, metric: float | None) -> None:
    assert metric_of(state, "top1") == metric


def test_the_best_on_disk_stay_until_better_ones_come(tmp_path: Path, save: Save) -> None:
    for step, top1 in TOP1.items():
        save(tmp_path, CheckpointContent(step, {}, {}, {"metrics": {"top1": top1}}), Retention(keep=1, keep_best=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [format.folder_name(step) for step in (30, 40, 60)]


def test_a_best_one_that_was_damaged_is_no_longer_one(tmp_path: Path, save: Save) -> None:
    for step, top1 in TOP1.items():
        save(tmp_path, CheckpointContent(step, {}, {}, {"metrics": {"top1": top1}}), Retention(keep=1, keep_best=1))
        if step == 40:
            (tmp_path / "step-00000040" / format.MODEL).write_bytes(b"")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == [format.folder_name(step) for step in (50, 60)]

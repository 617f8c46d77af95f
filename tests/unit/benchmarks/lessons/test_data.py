"""From records to the data of a lesson, and numbers of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.lessons import data
from benchmarks.lessons.data import Measured


def run(label: str, seed: int, top1: float | None, *, counts: bool = True, norms: Any = None) -> dict[str, Any]:
    """A run; without a top-1 it has diverged."""
    return {
        "values": {"label": label},
        "seed": seed,
        "status": "diverged" if top1 is None else "finished",
        "counts": counts,
        "metrics": {} if top1 is None else {"top1": top1},
        "layers": {} if norms is None else {"1": {"gradient_norm": norms}},
    }


MEASURED = Measured(
    {
        "study": "s",
        "runs": [
            run("a", 0, 0.5, norms=[1.0, 4.0]),
            run("a", 1, 0.7, norms=[100.0, 4.0]),
            run("a", 2, None, norms=[None, 4.0]),
            run("a", 3, 0.99, counts=False),
            run("b", 1, 0.6),
            run("b", 0, 0.3),
        ],
    }
)


def test_runs_without_the_metric_and_candidates_of_a_tuning_do_not_count() -> None:
    assert MEASURED.by_seed("top1", {"label": "a"}) == {0: 0.5, 1: 0.7}
    assert MEASURED.summary("top1", {"label": "a"}).mean == pytest.approx(0.6)


def test_a_run_that_diverged_can_count_with_a_value() -> None:
    assert MEASURED.by_seed("top1", {"label": "a"}, diverged=0.1) == {0: 0.5, 1: 0.7, 2: 0.1}
    assert MEASURED.num_diverged({"label": "a"}) == 1


def test_a_difference_is_paired_by_seed() -> None:
    difference = MEASURED.difference("top1", {"label": "a"}, {"label": "b"})
    assert (difference.n, difference.mean) == (2, pytest.approx(0.15))


def test_fewer_than_three_values_have_no_interval_and_no_verdict() -> None:
    def measured(n: int) -> Measured:
        pairs = [run("a", seed, 0.8 + seed / 1000) for seed in range(n)] + [run("b", seed, 0.3) for seed in range(n)]
        return Measured({"study": "s", "runs": pairs})

    a, b = {"label": "a"}, {"label": "b"}
    assert measured(3).summary("top1", a).half is not None
    assert measured(3).difference("top1", a, b).verdict == "larger"
    assert measured(2).summary("top1", a).half is None
    assert measured(2).difference("top1", a, b).verdict == "inconclusive"


def test_the_number_of_runs_with_finite_layers_is_known() -> None:
    assert MEASURED.num_with_layers("gradient_norm", {"label": "a"}) == 2
    assert MEASURED.num_with_layers("gradient_norm", {"label": "b"}) == 0


def test_a_missing_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="no run"):
        MEASURED.summary("top1", {"label": "c"})


def test_layers_are_geometric_means_over_the_seeds() -> None:
    assert MEASURED.layers("gradient_norm", {"label": "a"}) == pytest.approx([10.0, 4.0])
    assert MEASURED.layers("gradient_norm", {"label": "b"}) == []


def test_a_curve_has_few_points_and_ends_where_it_is_not_finite() -> None:
    records = [{"kind": "train", "step": step, "loss": 1.0 / step} for step in range(1, 101)]
    curve = data._curves(records, ["loss"])
    assert len(curve["step"]) == data.POINTS
    assert curve["step"][-1] == 100
    assert curve["loss"][0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, rel=1e-4)
    records[50]["loss"] = None
    assert data._curves(records, ["loss"])["step"][-1] == 50


def test_layers_are_kept_of_the_first_and_the_last_record() -> None:
    records = [{"kind": "layers", "step": step, "layers": {"a": {"x": step / 3}, "b": {}}} for step in (1, 5, 10)]
    assert dict(data._layers(records, ["x"])) == {"1": {"x": [0.33333, None]}, "10": {"x": [3.3333, None]}}


def test_data_are_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    data.write(MEASURED, tmp_path / "s.json")
    assert data.read(tmp_path / "s.json") == MEASURED


def test_pauses_between_sessions_do_not_count_as_time() -> None:
    assert data.union([(10.0, 11.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0

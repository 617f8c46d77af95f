"""The score of a storage leaves out the configuration that it forecasts; that of a run uses its own record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.planning import record, score
from launcher.planning.forecast import Interval
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.schema import ModelRecipe


def train(config: RunConfig, trained: Any, name: str, model: str, factor: float = 1.0) -> RunDirectory:
    """A run whose training takes 1 s for 10 GFLOPs, times `factor`."""
    config = replace(config, model=ModelRecipe(name=model, num_classes=2))
    training_s = 200 * (training_flops(config.model, 32) or 0.0) / 1e10 * factor
    run: RunDirectory = trained(config, name, start_s=3.0, training_s=training_s, evaluation_s=0.1, saving_s=0.1)
    return run


@pytest.fixture
def storage(config: RunConfig, trained: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five configurations; of one, two runs that both took ten times as long."""
    monkeypatch.setattr(record, "_READING_S", 60.0)
    for name in ("resnet8", "resnet14", "resnet32", "resnet44"):
        train(config, trained, name, name)
    for number in (1, 2):
        train(config, trained, f"slow-{number}", "resnet20", factor=10)
    return Path(config.storage)


def test_a_run_is_not_forecast_from_runs_of_its_configuration(storage: Path) -> None:
    """Else the two slow runs would forecast each other well."""
    found = score.score(storage)
    by_name = {one.name: one for one in found.outcomes}
    assert len(by_name) == 6
    assert by_name["slow-1"].actual_s > 4 * by_name["slow-1"].forecast.wall_s.median
    assert not by_name["slow-1"].inside
    assert found.times.coverage == sum(one.inside for one in found.outcomes) / 6
    assert found.times.median_width > 0
    assert found.recorded == []


def test_the_lines_name_what_is_outside(storage: Path) -> None:
    text = "\n".join(score.lines(storage))
    assert "6 finished runs of 5 configurations" in text
    assert "inside the 80% interval, from runs of other configurations" in text
    assert text.count("outside") >= 2
    assert "median width" in text
    assert "accuracy   no forecast: no recipe has finished runs with three seeds" in text
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_a_storage_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished runs in it can be read"):
        list(score.lines(tmp_path))
    with pytest.raises(UsageError, match="there is no such folder"):
        list(score.lines(tmp_path / "none"))


def test_what_is_missing_for_a_forecast_is_said(config: RunConfig, trained: Any) -> None:
    for name in ("resnet8", "resnet14"):
        train(config, trained, name, name)
    text = "\n".join(score.lines(Path(config.storage)))
    assert "2 finished runs of 2 configurations" in text
    assert "time       no forecast: that needs runs of three configurations" in text


def test_an_accuracy_is_forecast_from_other_seeds(config: RunConfig, trained: Any) -> None:
    """Twice the same seed is no evidence for itself."""
    reached = {"a": (0, 0.50), "b": (1, 0.52), "c": (2, 0.54), "d": (3, 0.90), "again": (3, 0.90)}
    for name, (seed, top1) in reached.items():
        run = train(replace(config, seed=seed), trained, name, "resnet8")
        run.finished_file.write_text(json.dumps({**(run.summary() or {}), "top1": top1}))
    found = score.score(Path(config.storage)).accuracies
    assert (len(found.pairs), found.inside) == (5, 3)  # 0.52 (80%: 0.48 to 0.56) for d, by a, b and c
    narrow = min(interval.high - interval.low for interval, _ in found.pairs)
    assert narrow == pytest.approx(2 * 1.886 * 0.02 * math.sqrt(4 / 3), rel=1e-3)
    text = "\n".join(score.lines(Path(config.storage)))
    assert "accuracy   3 of 5 (60%) inside the 80% interval, from runs of the same recipe with other seeds" in text


def test_a_run_is_compared_with_what_was_recorded_at_its_start(config: RunConfig, trained: Any, storage: Path) -> None:
    started = RunDirectory(storage, "new")
    started.create()
    record.write(replace(config, model=ModelRecipe(name="resnet8", num_classes=2)), started, Interval.exactly(0.5))
    content = started.forecast.read_text()
    assert score.of_run(started) is None  # not finished
    run = train(config, trained, "new", "resnet8")
    run.forecast.write_text(content)
    found = score.of_run(run)
    assert found is not None
    assert found.inside
    assert (found.accuracy_inside, found.top1) == (True, 0.5)
    assert found.parts["start_s"] == pytest.approx(3)
    assert score.of_run(RunDirectory(storage, "resnet8")) is None  # started without a forecast
    text = "\n".join(score.lines(storage))
    at_starts = text.partition("recorded when the runs were started")[2]
    assert "time       1 of 1 (100%) inside" in at_starts
    assert "accuracy   1 of 1 (100%) inside the 80% interval" in at_starts


def test_an_accuracy_that_is_unknown_is_not_scored(config: RunConfig, trained: Any, storage: Path) -> None:
    run = RunDirectory(storage, "new")
    run.create()
    record.write(config, run, Interval.exactly(0.5))
    content = run.forecast.read_text()
    train(config, trained, "new", "resnet8")
    run.forecast.write_text(content)
    summary = json.loads(run.finished_file.read_text())
    run.finished_file.write_text(json.dumps({**summary, "top1": None}))
    found = score.of_run(run)
    assert found is not None
    assert found.accuracy_inside is None

"""`launcher.Run`, read from a directory as a person finds it: before the first evaluation, or damaged."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launcher
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from launcher.run.record_types import utc_now


@pytest.fixture
def run(small_run: RunDirectory) -> launcher.Run:
    """A run whose first attempt has begun."""
    line = {"event": "started", "attempt": 1, "time": utc_now()}
    small_run.attempts_file.write_text(json.dumps(line) + "\n")
    return launcher.load_run(small_run.path)


@pytest.fixture
def write(run: launcher.Run, train_record: Callable[..., str]) -> Callable[..., None]:
    """Write a train record, and evaluations (step, top1, and more keys) to the run's metrics.jsonl."""

    def write(*evaluations: tuple[int, float | None], **more: Any) -> None:
        lines = [train_record(1)]
        for step, top1 in evaluations:
            record = {"kind": "eval", "step": step, "epoch": step / 10, "top1": top1, "loss": 1.0, "num_samples": 50}
            lines.append(json.dumps(record | more) + "\n")
        lines.append(json.dumps({"kind": "event", "step": 9, "event": "warning", "detail": {"text": "x"}}) + "\n")
        (run.path / "metrics.jsonl").write_text("".join(lines))

    return write


def test_a_run_without_metrics(run: launcher.Run) -> None:
    assert len(run.metrics) == 0
    assert list(run.evaluations.columns) == ["step", "epoch", "top1", "top5", "loss", "num_samples"]
    assert run.best is None
    assert run.checkpoints == {}
    assert "no evaluation yet" in run._repr_html_()
    with pytest.raises(UsageError, match="has saved no checkpoint yet"):
        run.model()


def test_tables_have_the_records_of_one_kind_and_their_columns(run: launcher.Run, write: Callable[..., None]) -> None:
    write((4, 0.5), (8, None), metrics={"f1": 0.25})
    assert list(run.train.columns) == ["step", "epoch", "loss", "images_per_s"]
    assert list(run.evaluations.columns) == ["step", "epoch", "top1", "loss", "num_samples", "f1"]
    assert math.isnan(run.evaluations.top1[1])
    assert run.evaluations.f1[0] == 0.25
    assert list(run.events.event) == ["warning"]
    assert list(run.metrics.kind) == ["train", "eval", "eval", "event"]


def test_best_is_the_first_evaluation_with_the_highest_top1(run: launcher.Run, write: Callable[..., None]) -> None:
    write((4, 0.5), (6, 0.75), (8, None), (9, 0.75))
    best = run.best
    assert best is not None
    assert (best.step, best.top1, best.num_samples) == (6, 0.75, 50)
    assert best.label == "50 val images at 224 px, central crop 0.875, weights of the step, float32"


def test_a_notebook_shows_text_as_text(run: launcher.Run, write: Callable[..., None]) -> None:
    write((4, 0.5))
    folder = run.path.rename(run.path.with_name("<b>run"))
    shown = launcher.load_run(folder)._repr_html_()
    assert "<b>" not in shown
    assert "50.00% at step 4" in shown


def test_a_damaged_run_is_shown_in_a_notebook(run: launcher.Run, write: Callable[..., None]) -> None:
    write((4, 0.5))
    (run.path / "config.yaml").write_text("model: [")
    assert "has no recipe that this version can read" in run._repr_html_()
    with pytest.raises(UsageError, match="has no recipe that this version can read"):
        _ = run.best


def test_plot_shows_losses_and_accuracy(run: launcher.Run, write: Callable[..., None]) -> None:
    write((4, 0.5), (8, 0.75))
    losses, accuracies = run.plot().axes
    assert [line.get_label() for line in losses.lines] == ["training", "val"]
    [line] = accuracies.lines
    assert list(line.get_ydata()) == [50.0, 75.0]
    assert accuracies.get_title() == "best 75.00% at step 8"


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "figures"), ("pandas", "notebook")])
def test_a_missing_package_is_named(
    run: launcher.Run, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'resnet-launcher\[{extra}\]'"):
        _ = run.plot() if package == "matplotlib" else run.train


def test_another_step_is_refused(run: launcher.Run) -> None:
    (run.path / "checkpoints" / "step-00000004").mkdir()
    with pytest.raises(UsageError, match=r"has no checkpoint of step 5. Allowed: 4"):
        run.model(step=5)


def test_a_run_cannot_be_changed(run: launcher.Run) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.path = Path("other")  # type: ignore[misc]


def test_a_run_is_found_as_on_the_command_line(run: launcher.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    assert launcher.load_run(run.path.name) == run
    monkeypatch.setattr("launcher.run.named.USUAL_STORAGES", (run.path.parent,))
    monkeypatch.chdir("/")
    assert launcher.load_run(run.path.name) == run
    checkpoint = run.path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    for path, advice in (
        (checkpoint, f"this is a checkpoint of a run. Allowed: the run directory, {run.path}"),
        (run.path.parent, "this folder contains runs. Allowed: the path of one: small"),
        ("nothing", "no run with this name"),
    ):
        with pytest.raises(UsageError, match=advice):
            launcher.load_run(path)

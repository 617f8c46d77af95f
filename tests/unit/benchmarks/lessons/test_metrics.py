"""Metrics of a finished run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import launcher
from benchmarks.lessons import metrics
from launcher.api import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps of a network on images whose brightness is their class."""
    folder = tmp_path_factory.mktemp("lessons")
    for split, count in (("train", 8), ("val", metrics.MODE_IMAGES // 2)):
        for label, level in (("dark", 20), ("light", 220)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8), level + number % 16, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return launcher.fit(
        {
            "schema": 1,
            "name": "run",
            "storage": str(folder),
            "place": "local",
            "duration": "4 steps",
            "model": {"name": "resnet8", "num_classes": 2, "width": 0.25},
            "data": {"root": str(folder), "resolution": 8},
            "batch": {"size": 8},
            "batch_norm": {"span": 4},
            "schedule": {"peak_lr": 0.01},
            "log": {"every_steps": 1, "layers_every_steps": 4},
            "faults": {"max_failures": 0},
        }
    )


def test_the_training_loss_is_the_mean_of_the_last_fifth(run: Run) -> None:
    losses = run.metrics.query("kind == 'train'")["loss"]
    assert metrics.training(run) == {"training_loss": pytest.approx(losses.iloc[-1])}


def test_steps_to_a_target_are_left_out_if_the_run_does_not_reach_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WINDOW", 16)
    monkeypatch.setattr(metrics, "TARGET", 100.0)
    assert metrics.steps_to_target(run) == {"steps_to_target": 2.0}
    monkeypatch.setattr(metrics, "TARGET", 0.0)
    assert metrics.steps_to_target(run) == {}


def test_small_weights_and_the_norm_are_those_of_the_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = metrics.weights(run)
    assert 0 < found["small_weights"] < 0.1
    monkeypatch.setattr(metrics, "SMALL", math.inf)
    assert metrics.weights(run) == {"small_weights": 1.0, "weight_norm": found["weight_norm"]}


def test_evaluation_mode_is_the_evaluation_of_the_run(run: Run) -> None:
    found = metrics.modes(run)
    assert run.summary is not None
    assert found["evaluation_mode_loss"] == pytest.approx(run.summary["loss"], rel=1e-5)
    assert found["training_mode_loss"] != pytest.approx(found["evaluation_mode_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (metrics.gradients, {"first_gradient", "gradient_ratio"}),
        (metrics.activations, {"activation_ratio", "gradient_ratio"}),
        (metrics.parameters, {"parameters"}),
    ],
)
def test_a_metric_of_the_layers_is_a_positive_number(
    run: Run, metric: Callable[[Run], dict[str, float]], names: set[str]
) -> None:
    found = metric(run)
    assert found.keys() == names
    assert all(value > 0 for value in found.values())

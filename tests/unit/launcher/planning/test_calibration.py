"""A calibration measures what the machine can hold, is kept by configuration, and is scaled where it must be."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.schema import Resources, RunConfig, Workers
from launcher.errors import UsageError
from launcher.planning import calibration
from launcher.planning import measurement as measurements
from launcher.planning.calibration import calibrate, save, saved, windows
from launcher.planning.measurement import Measurement, Speed
from resnet_dist.recipe.schema import BatchRecipe, ModelRecipe


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Measurement]:
    """What was measured; each answer has steps of 1 s."""
    found: list[Measurement] = []

    def measure(folder: Path, measurement: Measurement) -> Speed:
        found.append(measurement)
        return Speed(10.0, "", (1.0,) * 20, start_s=5.0, evaluation_s=0.01, num_samples=100, num_val=25)

    monkeypatch.setattr(calibration, "in_processes", measure)
    monkeypatch.setattr(measurements.os, "cpu_count", lambda: 2)
    return found


def test_the_runs_own_steps_are_measured_for_the_given_time(config: RunConfig, seen: list[Measurement]) -> None:
    said: list[str] = []
    found = calibrate(config, 30, said.append)
    assert (seen[0].seconds, seen[0].kind, seen[0].workers, seen[0].recipe) == (30, "whole", 1, config.recipe())
    assert said == ["calibrating for about 30 s: 1 worker, 10 images in a step"]
    assert (found.worker_images, found.num_samples, found.num_val, found.notes) == (10, 100, 25, [])


def test_a_calibration_is_not_silent(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) > 2:
            told.set()

    def measure(folder: Path, measurement: Measurement) -> Speed:
        assert told.wait(10)
        return Speed(10.0, "", (1.0,))

    monkeypatch.setattr(calibration, "_TELL_S", 0.01)
    monkeypatch.setattr(calibration, "in_processes", measure)
    calibrate(config, 30, say)
    assert said[1] == "  0 of about 30 s"


def test_a_machine_with_fewer_cores_measures_one_worker(config: RunConfig, seen: list[Measurement]) -> None:
    found = calibrate(replace(config, workers=Workers(5, 5)))
    assert (found.workers, found.worker_images, seen[0].recipe.batch.size) == (1, 2, 2)
    assert found.notes == ["Measured with 1 worker of 5: this machine has 2 CPUs."]


def test_without_the_images_synthetic_ones_are_used(config: RunConfig, seen: list[Measurement]) -> None:
    config = replace(config, data=replace(config.data, root="/none"))
    found = calibrate(config)
    assert seen[0].recipe.data.source == "synthetic"
    assert (found.num_samples, found.num_val) == (100, None)
    assert "reading is not included" in found.notes[0]


def test_a_step_that_takes_too_long_has_fewer_images(
    config: RunConfig, seen: list[Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_dist.telemetry.flops.peak_flops", lambda device, precision: (1e11, ""))
    model, data = ModelRecipe(name="resnet50"), replace(config.data, resolution=224)
    found = calibrate(replace(config, model=model, data=data, batch=BatchRecipe(size=4096)))
    assert found.worker_images == seen[0].recipe.batch.size < 100
    assert "in place of 4096" in found.notes[0]


def test_a_machine_without_a_gpu_cannot_measure_one(config: RunConfig, seen: list[Measurement]) -> None:
    with pytest.raises(UsageError, match="measure on one that has"):
        calibrate(replace(config, resources=Resources(gpus_per_worker=1)))


def test_a_failure_says_why(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "in_processes", lambda folder, measurement: Speed(None, "failed: no images"))
    with pytest.raises(UsageError, match="the calibration failed: no images"):
        calibrate(config)


def test_it_is_kept_for_the_same_configuration_and_machine(
    config: RunConfig, seen: list[Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(config, calibrate(config))
    assert file.parent == Path(config.storage, ".calibrations")
    found = saved(replace(config, name="other", seed=7))
    assert found is not None
    assert found.step_s == [1.0] * 10
    assert saved(replace(config, batch=BatchRecipe(size=20))) is None
    content = json.loads(file.read_text())
    for spoiled in ("{", "[]", json.dumps({**content, "step_s": []}), json.dumps({**content, "device": "another"})):
        file.write_text(spoiled)
        assert saved(config) is None


def test_steps_are_averaged_in_windows() -> None:
    assert windows([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert windows([9.0, *[1.0] * 8, *[3.0] * 8]) == [1.0] * 4 + [3.0] * 4

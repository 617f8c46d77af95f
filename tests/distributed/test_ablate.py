"""The processes of `launcher plan --ablate`, which measure a run's recipe on its own images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.config.load import load
from launcher.planning.measurement import Measurement, in_processes


def test_two_workers_measure_and_a_failure_is_reported(config_file: Path, tmp_path: Path) -> None:
    recipe = replace(load(str(config_file), []).recipe(), precision="float32")
    measurement = Measurement("synthetic", recipe, workers=2, steps=1, num_threads=1, on_gpu=False)
    found = in_processes(tmp_path, measurement)
    assert found.images_per_s is not None, found.text
    assert found.images_per_s > 0

    broken = replace(recipe, data=replace(recipe.data, root=str(tmp_path / "none")))
    found = in_processes(tmp_path, replace(measurement, recipe=broken))
    assert found.images_per_s is None
    assert "DataError" in found.text
    assert str(tmp_path / "none") in found.text

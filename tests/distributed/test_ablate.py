"""What `launcher plan --ablate` starts: processes of its own that measure a run's recipe on its own images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.commands import ablate
from launcher.commands.ablate import Measurement
from launcher.config.load import load


def test_two_workers_measure_and_a_failure_is_told(config_file: Path, tmp_path: Path) -> None:
    recipe = replace(load(str(config_file), []).recipe(), precision="float32")
    measurement = Measurement("some", "synthetic", recipe, workers=2, steps=1, num_threads=1, on_gpu=False)
    found = ablate._run(measurement, tmp_path)
    assert found.images_per_s is not None, found.text
    assert found.images_per_s > 0

    broken = replace(recipe, data=replace(recipe.data, root=str(tmp_path / "none")))
    found = ablate._run(replace(measurement, recipe=broken, workers=1), tmp_path)
    assert found.images_per_s is None
    assert "DataError" in found.text
    assert str(tmp_path / "none") in found.text

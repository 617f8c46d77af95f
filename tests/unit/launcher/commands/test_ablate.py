"""`launcher plan --ablate`: what is measured, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from lars_config import config

from launcher.commands.ablate import changes, lines
from launcher.errors import UsageError
from launcher.planning import measurement as measurements
from launcher.planning.measurement import Measurement, Speed
from resnet_dist.recipe.schema import (
    SpeedRecipe,
)


def test_every_speed_key_is_given_each_value_that_it_does_not_have() -> None:
    found = list(changes(SpeedRecipe()))
    assert ("channels_last", False) in found
    assert ("compile", True) in found
    assert [value for key, value in found if key == "sgd_kernel"] == ["foreach", "fused", "loop"]
    without_loop = [value for key, value in changes(SpeedRecipe(sgd_kernel="loop")) if key == "sgd_kernel"]
    assert without_loop == ["foreach", "fused"]


def test_the_slowest_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"whole": 90.0, "loader": 100.0, "synthetic": 200.0}

    def measure(folder: Path, measurement: Measurement) -> Speed:
        if measurement.recipe.speed.compile:
            return Speed(None, "failed: no compiler")
        speed = 150.0 if measurement.workers == 1 else speeds[measurement.kind]
        return Speed(speed, "bound by input" if measurement.kind == "whole" else "")

    monkeypatch.setattr(measurements.os, "cpu_count", lambda: 2)
    text = "\n".join(lines(config(tmp_path), 5, measure))
    assert "5 steps each, on 2 of 2 workers" in text
    assert "2 x one worker        300.0 images/s" in text
    assert "the slowest part is loader; the whole reaches 90% of it" in text
    assert "bound by input" in text
    assert "measured twice, 0.0% apart" in text
    assert "channels_last: false          200.0 images/s, 1.000 times" in text
    assert "failed: no compiler" in text
    assert "cuda_graph: true                  - has no effect on a CPU" in text
    assert "speed.sgd_kernel: found loop, which has no effect here" in text  # LARS has no other kernels


def test_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps 0: Allowed: a number from 1 up"):
        list(lines(config(tmp_path), steps=0))

"""A small config with LARS, for the tests of measurements."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig, Workers
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, ModelRecipe, OptimizerRecipe, ScheduleRecipe


def config(tmp_path: Path, root: Path | None = None, workers: int = 2, **changes: Any) -> RunConfig:
    whole = RunConfig(
        schema=1,
        name="some",
        storage=str(tmp_path / "runs"),
        workers=Workers(workers, workers),
        duration=Duration(Fraction(2), "epochs"),
        model=ModelRecipe(name="resnet20", num_classes=2),
        data=DataRecipe(root=str(root or tmp_path), resolution=8),
        batch=BatchRecipe(size=4),
        optimizer=OptimizerRecipe(name="lars"),
        schedule=ScheduleRecipe(peak_lr=1.0),
    )
    return replace(whole, **changes)

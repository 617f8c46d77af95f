"""Run directories of finished runs with given times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config.schema import RunConfig, Workers
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EvaluateRecipe,
    ModelRecipe,
    OptimizerRecipe,
    ScheduleRecipe,
)

DEVICE = {"cpu": "a CPU", "gpus": [], "num_cpus_allowed": 2}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """20 steps of 10 images, with 2 evaluations, on one CPU process."""
    return RunConfig(
        schema=1,
        name="planned",
        storage=str(tmp_path / "runs"),
        place="local",
        workers=Workers(1, 1),
        duration=Duration(Fraction(2), "epochs"),
        model=ModelRecipe(name="resnet8", num_classes=2),
        data=DataRecipe(root=str(tmp_path), resolution=32, num_samples=100),
        batch=BatchRecipe(size=10),
        optimizer=OptimizerRecipe(name="sgd"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        evaluate=EvaluateRecipe(every=Duration(Fraction(1), "epochs")),
    )


Trained = Callable[..., RunDirectory]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Write a finished run of a config, as `trained(config, start_s=, training_s=, evaluation_s=, saving_s=)`.

    `workers` is the number that trained, if it is not that of the config.
    """
    monkeypatch.setattr("launcher.planning.history.devices", lambda: DEVICE)
    monkeypatch.setattr("launcher.planning.history.os.sched_getaffinity", lambda pid: {0, 1}, raising=False)

    def write(
        config: RunConfig, name: str, *, device: dict[str, Any] = DEVICE, workers: int | None = None, **times: float
    ) -> RunDirectory:
        config = replace(config, name=name)
        run = RunDirectory(Path(config.storage), name)
        run.create()
        run.write_config(configs.to_yaml(config))
        run.environment.write_text(json.dumps(device))
        number = run.begin_attempt({"place": "local", "workers": workers or config.workers.most, "from_step": 0})
        run.end_attempt(number, 0, "finished", 20)
        steps = config.duration.steps(batch_size=config.batch.size, num_samples=100)
        summary = {"step": steps, "finished": True, "num_samples": 25, "top1": 0.5, "duration": str(config.duration)}
        run.mark_finished({**summary, **times, "command_s": sum(times.values())})
        return run

    return write

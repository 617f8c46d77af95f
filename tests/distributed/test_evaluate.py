"""`launcher evaluate` on several workers: counts do not depend on their number."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.inference.evaluate import Evaluated, Request, evaluate_checkpoint
from launcher.inference.trained import saved
from launcher.inference.workers import evaluate_with
from resnet_dist.telemetry.metrics_file import read_metrics
from tests.distributed.conftest import environment


def recorded(run: Path) -> dict[str, Any]:
    """The run's own last evaluation."""
    return next(one for one in reversed(read_metrics(run / "metrics.jsonl")) if one["kind"] == "eval")


@pytest.fixture
def alone(one_process: Path) -> Evaluated:
    return evaluate_checkpoint(saved(one_process))


def test_three_workers_have_the_counts_and_predictions_of_one(one_process: Path, alone: Evaluated) -> None:
    own = recorded(one_process)
    assert {**own, **alone.evaluation.record()} == own  # 355 images: parts of 119, 118 and 118
    found = evaluate_with(saved(one_process), Request(), 3)
    assert (found.num_workers, found.evaluation.num_samples) == (3, 355)
    assert (found.evaluation.top1, found.evaluation.top5) == (own["top1"], own["top5"])
    assert math.isclose(found.evaluation.loss, own["loss"], rel_tol=1e-12)
    assert found.predictions is not None
    assert alone.predictions is not None
    for name in ("rows", "labels", "predicted"):
        assert np.array_equal(getattr(found.predictions, name), getattr(alone.predictions, name))
    np.testing.assert_allclose(found.predictions.probabilities, alone.predictions.probabilities, rtol=1e-12)


def test_torchruns_processes_evaluate_together_and_one_prints(one_process: Path, alone: Evaluated) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "launcher", "evaluate", str(one_process), "--json"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(ended.stdout)
    assert (found["workers"], found["label"]["num_samples"]) == (2, 355)
    assert (found["top1"], found["top5"]) == (alone.evaluation.top1, alone.evaluation.top5)

"""The bottleneck at the end of a run, for models whose operations cannot be counted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resnet_dist.build import _classify
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, ModelRecipe, Recipe, ScheduleRecipe
from resnet_dist.telemetry.bottleneck import StepTimes
from resnet_dist.training.device import Worker

MODULE = "users_model_of_classify_test"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{MODULE}.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3, num_classes)\n"
        "    def forward(self, images):\n"
        "        if float(images.mean()) > 0:\n"  # the meta device has no values
        "            images = -images\n"
        "        return self.head(images.mean((2, 3)))\n"
        "def model(num_classes):\n    return Model(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def recipe(name: str) -> Recipe:
    return Recipe(
        data=DataRecipe(root="images", resolution=8),
        batch=BatchRecipe(size=4),
        duration=Duration(Fraction(2), "steps"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(name=name, num_classes=2),
    )


def test_a_model_that_cannot_be_counted_does_not_fail_a_run_that_is_done(caplog: pytest.LogCaptureFixture) -> None:
    windows = [StepTimes(last_step=2, num_steps=2, step_s=0.1, input_s=0.01, copies_s=0.0, local_step_times_s=(0.1,))]
    found = _classify(recipe(f"{MODULE}:model"), Worker(0, 1, torch.device("cpu"), 1), 8, windows)
    assert found is not None
    assert f"the operations of {MODULE}:model cannot be counted" in caplog.text


def test_a_built_in_model_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    windows = [StepTimes(last_step=2, num_steps=2, step_s=0.1, input_s=0.01, copies_s=0.0, local_step_times_s=(0.1,))]
    found = _classify(recipe("resnet20"), Worker(0, 1, torch.device("cpu"), 1), 8, windows)
    assert found is not None
    assert "model FLOPs" in str(found.record()["text"])

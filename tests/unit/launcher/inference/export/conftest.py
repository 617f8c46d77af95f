"""Checkpoints of networks that no run has trained, with weights and statistics that differ from layer to layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.inference.export.exporting import Exported, export
from launcher.inference.trained import saved
from resnet_dist.checkpoint import save
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.models import build_model
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    ScheduleRecipe,
    plain,
)

WriteCheckpoint = Callable[..., Path]
SUFFIXES = {"torchvision": "pth", "timm": "pth", "safetensors": "safetensors", "torch.export": "pt2", "onnx": "onnx"}


def write_checkpoint(
    folder: Path, model: dict[str, Any], epsilon: float | None = None, classes: tuple[str, ...] = (), **more: Any
) -> Path:
    """The folder of a checkpoint of step 7. `model`: keys of `model` in a config; `more`: of the recipe."""
    recipe = Recipe(
        data=DataRecipe(root="/data/of/somebody/shapes", resolution=32),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("7 steps"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(**model),
        batch_norm=BatchNormRecipe(epsilon=epsilon),
        **more,
    )
    network = build_model(recipe.model, seed=0)
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.01)  # an epsilon changes the outputs
        elif name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    if recipe.precision == "float64":
        state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    facts = {"recipe": plain(recipe), "classes": list(classes), "metrics": {"top1": 0.75, "top5": 1.0, "loss": 0.5}}
    return save.write(folder, CheckpointContent(7, state, {}, facts))


@pytest.fixture
def checkpoint(tmp_path: Path) -> WriteCheckpoint:
    """Write a checkpoint that belongs to no run: `write_checkpoint` without its folder."""

    def write(model: dict[str, Any], **more: Any) -> Path:
        return write_checkpoint(tmp_path / "checkpoints", model, **more)

    return write


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ResNet-18 with 3 classes and another epsilon than torch's."""
    model = {"name": "resnet18", "num_classes": 3}
    return write_checkpoint(tmp_path_factory.mktemp("resnet18"), model, epsilon=1e-3, classes=("ant", "bee", "cat"))


@pytest.fixture(scope="session")
def exported(trained_run: Path, resnet18: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """The export of `trained_run` or of `resnet18` in a format, each made once."""

    @functools.cache
    def made(format: str, model: Path = trained_run) -> Exported:
        folder = tmp_path_factory.mktemp("exported")
        return export(saved(model), format, folder / "out" / f"small.{SUFFIXES[format]}")

    return made

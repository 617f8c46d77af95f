"""Small checkpoints to save, break and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.retention import Retention, delete_old
from resnet_dist.checkpoint.save import write

SaveStep = Callable[..., Path]


def model_of(step: int) -> dict[str, Tensor]:
    """Tensors that depend on the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "bn1.num_batches_tracked": torch.tensor(step),
        "fc.weight": torch.randn(5, 4, generator=generator, dtype=torch.float64),
    }


def optimizer_of(step: int) -> dict[str, dict[str, Tensor]]:
    """Momentum for one parameter, none for the other."""
    return {"conv1.weight": {"momentum": torch.full((4, 3, 3, 3), float(step))}, "fc.weight": {}}


@pytest.fixture
def model() -> Callable[[int], dict[str, Tensor]]:
    return model_of


@pytest.fixture
def optimizer() -> Callable[[int], dict[str, dict[str, Tensor]]]:
    return optimizer_of


def save_content(folder: Path, content: CheckpointContent, retention: Retention) -> Path:
    """Write a checkpoint and delete old ones, as a run does."""
    path = write(folder, content)
    delete_old(folder, content.step, retention)
    return path


@pytest.fixture
def save() -> Callable[[Path, CheckpointContent, Retention], Path]:
    return save_content


@pytest.fixture
def save_step(tmp_path: Path) -> SaveStep:
    """Save the checkpoint of a step into the test's folder."""

    def save_it(step: int, keep: int = 3) -> Path:
        content = CheckpointContent(step, model_of(step), optimizer_of(step), {"samples_seen": step * 8})
        return save_content(tmp_path, content, Retention(keep))

    return save_it

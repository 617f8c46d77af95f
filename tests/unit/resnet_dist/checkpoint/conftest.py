"""Small checkpoints to save, break and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.save import save

SaveStep = Callable[..., Path]


def model_of(step: int) -> dict[str, Tensor]:
    """Tensors that tell which step they are of."""
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


@pytest.fixture
def save_step(tmp_path: Path) -> SaveStep:
    """Save the checkpoint of a step into the test's folder."""

    def save_it(step: int, keep: int = 3) -> Path:
        return save(tmp_path, step, model_of(step), optimizer_of(step), {"samples_seen": step * 8}, Retention(keep))

    return save_it

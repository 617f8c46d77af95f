"""A user's model with a step time that a file sets: a test can slow down or stop a worker at any moment.

The file contains JSON: {"all": seconds of every training step, "2": seconds of rank 2}; a step of an hour is a hang.
For an image that is completely white the logits are NaN.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.models import MODELS, ResNet
from resnet_dist.models.initialisation import initialise


def build(num_classes: int, pace: str) -> nn.Module:
    """ResNet-20 that reads `pace` before each forward pass in training."""
    model = ResNet(MODELS["resnet20"], num_classes)
    initialise(model)
    model.register_forward_pre_hook(_Pace(Path(pace)))
    model.register_forward_hook(_nan_for_white)
    return model


def _nan_for_white(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
    channels = inputs[0].flatten(2)
    is_white = ((channels.amin(2) == channels.amax(2)) & (channels.amin(2) > 0)).all(1)
    return torch.where(is_white[:, None] & module.training, torch.full_like(logits, torch.nan), logits)


class _Pace:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, module: nn.Module, _: Any) -> None:
        if not module.training:
            return
        started = time.monotonic()
        rank = str(dist.get_rank()) if dist.is_initialized() else "0"
        while time.monotonic() - started < self._seconds(rank):  # read again: the file may change during a step
            time.sleep(0.01)

    def _seconds(self, rank: str) -> float:
        try:
            pace = json.loads(self._file.read_text())
        except (OSError, ValueError):  # missing, or being written
            return 0.0
        return float(pace.get(rank, pace.get("all", 0.0)))

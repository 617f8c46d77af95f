"""Exports that are tensors by name: for torchvision, for timm, and as safetensors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher.errors import UsageError
from launcher.inference.export.description import DEFAULT_EPSILON, Description
from resnet_dist.checkpoint import tensors
from resnet_dist.inference import TrainedModel


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` in float32; integers, the counters of batch norm, stay as they are."""
    state: Mapping[str, Tensor] = model.state_dict()
    return {name: one.float() if one.is_floating_point() else one for name, one in state.items()}


def save_pth(file: Path, trained: TrainedModel) -> None:
    """Write the state dict as torch.save does, for torchvision and timm."""
    torch.save(tensors_of(trained.model), file)


def in_torchvision(file: Path, network: str, about: Description) -> nn.Module:
    """torchvision's `network` with the weights in `file`."""
    from torchvision import models

    model: nn.Module = models.get_model(network, weights=None, num_classes=about.num_classes, **_norm_layer(about))
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def in_timm(file: Path, network: str, about: Description) -> nn.Module:
    """timm's `network` with the weights in `file`."""
    import timm

    model: nn.Module = timm.create_model(network, num_classes=about.num_classes, **_norm_layer(about))
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def _norm_layer(about: Description) -> dict[str, Any]:
    """The argument for another epsilon than the target's own, which a state dict does not hold."""
    if about.epsilon in (None, DEFAULT_EPSILON):
        return {}
    return {"norm_layer": functools.partial(nn.BatchNorm2d, eps=about.epsilon)}


def save_safetensors(file: Path, trained: TrainedModel, about: Description) -> None:
    """Write the state dict with the description as metadata. Raises UsageError for a dtype that the format lacks."""
    try:
        tensors.write(file, tensors_of(trained.model), about.as_strings())
    except ValueError as error:
        raise UsageError(f"--format safetensors: {error}") from error


def with_safetensors(file: Path, trained: TrainedModel) -> nn.Module:
    """The same network with the weights in `file`, read by the safetensors package."""
    from safetensors.torch import load_file

    model = copy.deepcopy(trained.model).float()
    model.load_state_dict(load_file(file))
    return model


def check_equal(loaded: nn.Module, trained: TrainedModel, what: str) -> None:
    """Raise UsageError unless the tensors of `loaded` are those of `trained`, bit by bit."""
    own, found = tensors_of(trained.model), loaded.state_dict()
    wrong = [name for name in own.keys() | found.keys() if name not in own or not _same(own[name], found.get(name))]
    if wrong:
        raise UsageError(f"{what}: has other values of {min(wrong)}: not written")


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))

"""The model of a checkpoint, ready to be used: evaluated, exported, or called on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_dist.checkpoint import format, restore
from resnet_dist.errors import CheckpointError
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import Recipe

Weights = Literal["auto", "model", "ema"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what is known about it."""

    model: nn.Module  # on the CPU, in evaluation mode; float32, or float64 if it was trained so
    recipe: Recipe
    classes: tuple[str, ...]  # names by label; empty if they were not recorded
    step: int  # completed steps
    weights: Literal["model", "ema"]  # those of the last step, or their exponential moving average
    checkpoint: Path
    state: Mapping[str, Any]  # state.json: metrics of the last evaluation, samples seen, versions


def trained_model(folder: Path, recipe: Recipe, weights: Weights = "auto") -> TrainedModel:
    """The model of the checkpoint in `folder`, which a run of `recipe` has saved.

    `weights`: "ema" is their moving average, "model" those of the last step; "auto" is the average if the checkpoint
    has one, as in evaluations of the run. Batch norm is torch's own, with the run's epsilon: in evaluation, spans make
    no difference. Raises CheckpointError for a damaged checkpoint, one without the average that is asked for, or one of
    another network; RecipeError if the model is a user's and cannot be built.
    """
    checkpoint = restore.load(folder)
    has_average = format.EMA in checkpoint.files
    if weights == "ema" and not has_average:
        raise CheckpointError(str(folder), "has no moving average of the weights: its run had no `ema.decay`")
    average = checkpoint.ema() if has_average and weights != "model" else None
    tensors: dict[str, Tensor] = {**checkpoint.model(), **(average or {})}
    model = build_model(dataclasses.replace(recipe.model, weights=None, freeze=()), recipe.seed)
    model.to(torch.float64 if recipe.precision == "float64" else torch.float32)
    if recipe.batch_norm.epsilon is not None:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eps = recipe.batch_norm.epsilon
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        problem = f"holds another network than {recipe.model.name}: {str(error).splitlines()[-1].strip()}"
        raise CheckpointError(str(folder), problem) from error
    names = checkpoint.state.get("classes")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return TrainedModel(
        model=model.eval(),
        recipe=recipe,
        classes=tuple(names or ()) if known else (),
        step=checkpoint.step,
        weights="model" if average is None else "ema",
        checkpoint=folder,
        state=checkpoint.state,
    )

"""What is known about a trained model: its classes, input, accuracy, recipe and environment, as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from launcher.formatting import count
from launcher.inference.accuracy import Accuracy, weights_in_words
from launcher.inference.names import class_names, for_outputs, human_names
from launcher.inference.trained import Saved
from launcher.run.record_types import read_record
from resnet_dist.errors import TrainingError
from resnet_dist.inference import TrainedModel
from resnet_dist.input_files import printable, record_of
from resnet_dist.recipe.schema import DataRecipe, Recipe, plain
from resnet_dist.telemetry.metrics_file import read_metrics

DEFAULT_EPSILON = 1e-5  # of torch's batch norm, and of the networks of torchvision and timm
_PATHS = {
    "data": ("root", "classes", "known_bad"),
    "model": ("weights",),
}  # keys of the recipe: their last part is kept


@dataclass(frozen=True)
class Description:
    """A trained model without its tensors."""

    name: str  # of the run; of the checkpoint's folder outside of a run
    architecture: str  # `model.name` of the recipe
    num_classes: int
    classes: tuple[str, ...]  # by label; empty if they were not recorded
    names: tuple[str, ...]  # the same for a person: ImageNet's classes have English names
    weights: str  # model or ema
    step: int
    epsilon: float | None  # of all batch norms; None without any, or if they differ
    input: Mapping[str, Any]  # how an image becomes the network's input
    accuracy: Accuracy | None
    no_accuracy: str  # why there is none
    data: str  # name of the data set
    recipe: Mapping[str, Any]  # the recipe, without folders
    trained_with: Mapping[str, Any] = field(default_factory=dict)  # versions, workers

    @property
    def which(self) -> str:
        """Which weights these are, in words."""
        return f"step {self.step:,}, {weights_in_words(self.weights)}"

    def plain(self) -> dict[str, Any]:
        """As JSON; also `dtype`, that of the exported weights."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "classes": list(self.classes),
            "names": list(self.names),
            "weights": self.weights,
            "step": self.step,
            "dtype": "float32",
            "batch_norm_epsilon": self.epsilon,
            "input": dict(self.input),
            "accuracy": None if self.accuracy is None else self.accuracy.plain(),
            "data": self.data,
            "recipe": dict(self.recipe),
            "trained_with": dict(self.trained_with),
        }

    def as_strings(self) -> dict[str, str]:
        """As the metadata of a file that holds texts only: values that are no text as JSON."""
        values = {key: value for key, value in self.plain().items() if value is not None}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def described(saved: Saved, trained: TrainedModel) -> Description:
    """The description of `trained`, the model of `saved`."""
    recipe = saved.recipe
    data = recipe.evaluation_data
    accuracy, reason = _accuracy(saved, trained)
    classes = tuple(printable(name) for name in class_names(saved, trained.classes))
    if classes:
        classes = for_outputs(classes, recipe.model.num_classes)
    english = human_names(classes)
    folder = saved.checkpoint.name if saved.run is None else saved.run.name
    return Description(
        name=printable(folder),
        architecture=recipe.model.name,
        num_classes=recipe.model.num_classes,
        classes=classes,
        names=tuple(english.get(name, name) for name in classes),
        weights=trained.weights,
        step=trained.step,
        epsilon=_epsilon(trained.model),
        input={
            "shape": [3, data.resolution, data.resolution],
            "color": "RGB",
            "exif": data.exif,
            "crop": data.evaluation_crop,
            "interpolation": "bilinear",
            "antialias": True,
            "mean": list(data.mean),
            "std": list(data.std),
        },
        accuracy=accuracy,
        no_accuracy=reason,
        data=_data_name(data),
        recipe=_without_folders(recipe),
        trained_with=_environment(saved, trained),
    )


def _accuracy(saved: Saved, trained: TrainedModel) -> tuple[Accuracy | None, str]:
    """The evaluation of these weights, or the reason why there is none."""
    record = trained.state.get("metrics")
    if saved.run is not None:
        with contextlib.suppress(OSError):
            records = read_metrics(saved.run.metrics)
            record = next((one for one in records if (one["kind"], one["step"]) == ("eval", trained.step)), record)
    found = Accuracy.of(record if isinstance(record, dict) else {}, trained.step, saved.recipe)
    if found is None:
        return None, f"the run did not evaluate step {trained.step:,}, or its outputs were not finite"
    if found.weights != trained.weights:
        evaluated, own = weights_in_words(found.weights), weights_in_words(trained.weights)
        return None, f"the run evaluated the {evaluated}, and this has the {own}"
    if found.batch_norm_steps:
        steps = count(found.batch_norm_steps, "step")
        return None, f"the run evaluated with batch norm's statistics of {steps}, and this has the running statistics"
    return found, ""


def _epsilon(model: nn.Module) -> float | None:
    found = {module.eps for module in model.modules() if isinstance(module, _BatchNorm)}
    return found.pop() if len(found) == 1 else None


def _data_name(data: DataRecipe) -> str:
    return printable(PurePosixPath(data.root).name) or data.source


def _without_folders(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON. Paths, which may tell a person's or a company's names, are reduced to their last part."""
    found: dict[str, Any] = plain(recipe)
    for section, keys in _PATHS.items():
        for key in keys:
            if found[section][key]:
                found[section][key] = PurePosixPath(found[section][key]).name
    found["data"]["cache"]["folder"] = None
    return found


@dataclass(frozen=True)
class _Versions:
    """What is used of environment.json."""

    python: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)


def _environment(saved: Saved, trained: TrainedModel) -> dict[str, Any]:
    """Versions and the number of workers; not the host's name."""
    versions = _Versions()
    if saved.run is not None:
        with contextlib.suppress(TrainingError):
            versions = read_record(saved.run.environment, lambda content: record_of(_Versions, content)) or versions
    found = {"workers": trained.state.get("world_size"), "python": versions.python, "torch": trained.state.get("torch")}
    found |= versions.packages
    return {key: value for key, value in found.items() if isinstance(value, str | int) and value}

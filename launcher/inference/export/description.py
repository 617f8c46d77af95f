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
WEIGHTS = {"model": "weights of the last step", "ema": "moving average of the weights"}


@dataclass(frozen=True)
class Accuracy:
    """The last evaluation of the exported weights: fractions of the val images."""

    top1: float
    top5: float | None  # None with fewer than 6 classes
    loss: float | None
    num_samples: int | None  # val images; None if it was not recorded
    step: int
    resolution: int  # height and width of the network's input, in pixels
    crop: float  # side of the central crop / the image's shorter side
    weights: str
    precision: str

    def label(self) -> str:
        """What was measured, in words, without the number itself.

        >>> Accuracy(0.5, None, None, 355, 8, 32, 1.0, "ema", "float32").label()
        '355 val images at 32 px, central crop 1, moving average of the weights, float32'
        """
        images = "the val images" if self.num_samples is None else count(self.num_samples, "val image")
        at = f"at {self.resolution} px, central crop {self.crop:g}"
        return f"{images} {at}, {WEIGHTS[self.weights]}, {self.precision}"


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
        return f"{WEIGHTS[self.weights]}, step {self.step:,}"

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
            "accuracy": None if self.accuracy is None else {**plain(self.accuracy), "label": self.accuracy.label()},
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
    found, known = trained.state.get("metrics"), {}
    if saved.run is not None:
        with contextlib.suppress(OSError):
            records = read_metrics(saved.run.metrics)
            known = next((one for one in records if (one["kind"], one["step"]) == ("eval", trained.step)), {})
    values: Mapping[str, Any] = known or (found if isinstance(found, dict) else {})
    top1, top5, loss = (_number(values.get(key)) for key in ("top1", "top5", "loss"))
    recipe = saved.recipe
    if top1 is None:
        return None, f"the run did not evaluate step {trained.step:,}, or its outputs were not finite"
    evaluated = values.get("weights") or ("model" if recipe.ema.decay is None else "ema")
    if evaluated != trained.weights:
        other = WEIGHTS.get(evaluated, printable(str(evaluated)))
        return None, f"the run evaluated the {other}, and this has the {WEIGHTS[trained.weights]}"
    if recipe.evaluate.precise_batch_norm:
        steps = count(recipe.evaluate.precise_batch_norm, "step")
        return None, f"the run evaluated with batch norm's statistics of {steps}, and this has the running statistics"
    data, num = recipe.evaluation_data, known.get("num_samples")
    where = (data.resolution, data.evaluation_crop, trained.weights, recipe.precision)
    return Accuracy(top1, top5, loss, num, trained.step, *where), ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


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

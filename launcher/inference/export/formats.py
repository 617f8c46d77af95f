"""The formats of `launcher export`: what each needs, and which networks it takes. Needs no torch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.errors import UsageError
from resnet_dist.recipe.architectures import MODELS, architecture_of
from resnet_dist.recipe.schema import ModelRecipe

EXTRA = "pip install 'resnet-launcher[export]'"

# The networks of torchvision.models that are ours, with its names. timm has them under the same names, and ResNet-D.
TORCHVISION = (
    *(f"resnet{layers}" for layers in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
TIMM = (*TORCHVISION, *(f"resnet{layers}d" for layers in (18, 34, 50, 101, 152)))

Name = Literal["torchvision", "timm", "safetensors", "torch.export", "onnx"]


@dataclass(frozen=True)
class Format:
    """A format of exported models."""

    name: Name
    suffixes: tuple[str, ...]  # of its files
    packages: tuple[str, ...] = ()  # that it needs beyond the base installation
    networks: tuple[str, ...] | None = None  # that the target has; None: any network


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("torchvision", (".pth", ".pt"), networks=TORCHVISION),
        Format("timm", (".pth", ".pt"), ("timm",), TIMM),
        Format("safetensors", (".safetensors",), ("safetensors",)),
        Format("torch.export", (".pt2",)),
        Format("onnx", (".onnx",), ("onnx", "onnxruntime", "onnxscript")),
    )
}
_ANY = ", ".join(name for name, one in FORMATS.items() if one.networks is None)


def chosen(name: str, output: Path) -> Format:
    """The format `name` for the new file `output`.

    Raises UsageError for an unknown name, a package that is not installed, another suffix, or if one of the files that
    an export writes exists.
    """
    if name not in FORMATS:
        raise UsageError(f"--format {name}: there is no such format. Allowed: {', '.join(FORMATS)}")
    found = FORMATS[name]
    for package in found.packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--format {name}: needs {package}, which is not installed here. Install it with: {EXTRA}")
    if output.suffix not in found.suffixes:
        allowed = f"with --format {name}, a name that ends in {' or '.join(found.suffixes)}"
        raise UsageError(f"--output {output}: has another ending. Allowed: {allowed}")
    for file in (output, *beside(output)):
        if os.path.lexists(file):
            raise UsageError(f"--output {output}: {file} exists already. Allowed: delete it, or another name")
    return found


def beside(output: Path) -> tuple[Path, Path]:
    """The files with the description and the model card of the model in `output`: OUTPUT.json and OUTPUT.md."""
    return output.with_name(f"{output.name}.json"), output.with_name(f"{output.name}.md")


def network_in(target: Format, model: ModelRecipe) -> str:
    """The name of a run's network in the target of a format; "" if the format takes any network.

    Raises UsageError for a network that the target does not have.
    """
    if target.networks is None:
        return ""
    own = architecture_of(model) if model.name in MODELS else None
    for name in target.networks:
        if MODELS[name] == own:
            return name
    changed = " with the changes that the recipe makes to it" if model.name in target.networks else ""
    allowed = f"--format {_ANY}; or a network that {target.name} has: {', '.join(target.networks)}"
    raise UsageError(f"--format {target.name}: {target.name} has no {model.name}{changed}. Allowed: {allowed}")

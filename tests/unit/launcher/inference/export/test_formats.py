from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.inference.export.formats import FORMATS, chosen, network_in
from resnet_dist.recipe.schema import ModelRecipe


@pytest.mark.parametrize(("name", "suffix"), [("torchvision", ".onnx"), ("onnx", ".pth"), ("torch.export", ".pt")])
def test_another_suffix_is_refused(name: str, suffix: str) -> None:
    with pytest.raises(UsageError, match=rf"Allowed: with --format {name}, a name that ends in \."):
        chosen(name, Path(f"model{suffix}"))


@pytest.mark.parametrize("ending", ["", ".json", ".md"])
def test_no_file_is_overwritten(tmp_path: Path, ending: str) -> None:
    output = tmp_path / "model.pt2"
    assert chosen("torch.export", output).name == "torch.export"
    mine = tmp_path / f"model.pt2{ending}"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=f"{mine} exists already"):
        chosen("torch.export", output)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Allowed: torchvision, timm, safetensors, torch\.export, onnx"):
        chosen("tensorrt", Path("model.plan"))


@pytest.mark.parametrize(("name", "suffix"), [("timm", ".pth"), ("onnx", ".onnx"), ("safetensors", ".safetensors")])
def test_a_missing_package_is_named_with_the_extra(name: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"is not installed here.*pip install 'resnet-launcher\[export\]'"):
        chosen(name, Path(f"model{suffix}"))


def test_every_network_of_a_target_is_one_of_ours() -> None:
    for format in FORMATS.values():
        for name in format.networks or ():
            assert network_in(format, ModelRecipe(name=name)) == name


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resnet20"},
        {"name": "resnet18", "residual": False},
        {"name": "resnet50", "width": 2.0},
        {"name": "resnet50", "activation_order": "pre"},
        {"name": "my.package:model"},
    ],
    ids=["small images", "plain", "wide", "pre-activation", "user's"],
)
@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_networks_that_a_target_does_not_have(format: str, model: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Allowed: --format safetensors, torch\.export, onnx; or a network that"):
        network_in(FORMATS[format], ModelRecipe(**model))
    assert network_in(FORMATS["onnx"], ModelRecipe(**model)) == ""


def test_resnet_d_is_timms_only() -> None:
    assert network_in(FORMATS["timm"], ModelRecipe(name="resnet50d")) == "resnet50d"
    with pytest.raises(UsageError, match="torchvision has no resnet50d"):
        network_in(FORMATS["torchvision"], ModelRecipe(name="resnet50d"))


def test_a_network_is_known_by_what_it_is() -> None:
    """ResNet-18 with bottlenecks has the name resnet18, and no network of torchvision is like it; 34 becomes 50."""
    with pytest.raises(UsageError, match="with the changes that the recipe makes to it"):
        network_in(FORMATS["torchvision"], ModelRecipe(name="resnet18", block="bottleneck"))
    assert network_in(FORMATS["torchvision"], ModelRecipe(name="resnet34", block="bottleneck")) == "resnet50"

"""Exported files are loaded by the programs that they are for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher import cli
from launcher.errors import UsageError
from launcher.inference.export import state_dicts
from launcher.inference.export.exporting import Exported, export
from launcher.inference.trained import saved
from resnet_dist.models import build_model, load_weights
from resnet_dist.recipe.schema import ModelRecipe

WriteCheckpoint = Callable[..., Path]
Exports = Callable[..., Exported]


def pixel_statistics(num_classes: int) -> nn.Sequential:
    """A user's model without residual blocks."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, eps=0.01),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


class _TwoPaths(nn.Module):
    """What it computes depends on the pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.bright, self.dark = nn.Linear(3, num_classes), nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        return self.bright(means) if means.sum() > 0 else self.dark(means)


def two_paths(num_classes: int) -> nn.Module:
    """A user's model that cannot be traced."""
    return _TwoPaths(num_classes)


def for_four_images(num_classes: int) -> nn.Module:
    """A user's model that takes 4 images, the number of random images in the check."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Unflatten(0, (4, 1)), nn.Flatten(), nn.Linear(3, num_classes))


def not_finite(num_classes: int) -> nn.Module:
    """A user's model that has diverged."""
    model = pixel_statistics(num_classes)
    nn.init.constant_(model[-1].bias, float("inf"))
    return model


def images(num: int, resolution: int = 32) -> Tensor:
    """Random images, float32 [num, 3, resolution, resolution]."""
    return torch.randn((num, 3, resolution, resolution), generator=torch.Generator().manual_seed(1))


def ours(path: Path, given: Tensor, weights: Any = "auto") -> Tensor:
    """The outputs of our own model."""
    with torch.no_grad():
        return saved(path).load(weights).model(given)


def about(done: Exported) -> dict[str, Any]:
    """The description beside an exported file."""
    found: dict[str, Any] = json.loads(done.sidecar.read_text())
    return found


def is_empty(folder: Path) -> bool:
    """Whether no file was left."""
    return not folder.exists() or not list(folder.iterdir())


def test_torchvision_loads_the_weights_strictly(resnet18: Path, exported: Exports) -> None:
    from torchvision import models

    done = exported("torchvision", resnet18)
    network = models.resnet18(num_classes=3, norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3)).eval()
    network.load_state_dict(torch.load(done.file, weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(network(images(3)), ours(resnet18, images(3)))
    assert done.agreement.largest_difference == 0
    assert "eps=0.001" in done.remarks[0]
    found = about(done)
    assert (found["network"], found["batch_norm_epsilon"], found["classes"]) == (
        "resnet18",
        1e-3,
        ["ant", "bee", "cat"],
    )
    assert found["recipe"]["data"]["root"] == "shapes"
    assert found["checked"]["with"].keys() == {"torch", "torchvision"}
    beside = {path.name for path in done.file.parent.iterdir()} - {"photo.jpg"}
    assert beside == {"small.pth", "small.pth.json", "small.pth.md"}


@pytest.mark.parametrize("weights", ["auto", "model"])
def test_safetensors_has_the_weights_and_the_description(trained_run: Path, tmp_path: Path, weights: Any) -> None:
    from safetensors import safe_open

    done = export(saved(trained_run), "safetensors", tmp_path / "small.safetensors", weights)
    model = saved(trained_run).load(weights).model
    with safe_open(done.file, "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in model.state_dict().items())
        metadata = file.metadata()
    assert metadata["weights"] == ("ema" if weights == "auto" else "model")
    assert json.loads(metadata["classes"])[0] == "ant"
    accuracy = about(done)["accuracy"]
    if weights == "auto":
        evaluations = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
        last = [record for record in evaluations if record["kind"] == "eval"][-1]
        assert (accuracy["top1"], accuracy["num_samples"], accuracy["step"]) == (last["top1"], last["num_samples"], 6)
        assert accuracy["top1_interval"][0] < accuracy["top1"] < accuracy["top1_interval"][1]
        assert "21 val images at 16 px, central crop 0.875, moving average of the weights" in accuracy["label"]
    else:  # the run evaluates the average only
        assert accuracy is None
        assert "evaluated the moving average of the weights" in done.about.no_accuracy


def test_a_program_of_torch_export_takes_any_number_of_images(trained_run: Path, exported: Exports) -> None:
    done = exported("torch.export")
    extra = {"metadata.json": ""}
    program = torch.export.load(done.file, extra_files=extra).module()
    for num in (1, 5):
        torch.testing.assert_close(program(images(num, 16)), ours(trained_run, images(num, 16)))
    assert json.loads(extra["metadata.json"])["classes"][-1] == "gnu"
    assert done.agreement.num_val == 8
    assert b"resnet_dist/models" not in done.file.read_bytes()  # paths of this machine


def test_onnxruntime_takes_any_number_of_images(trained_run: Path, exported: Exports) -> None:
    import onnxruntime

    done = exported("onnx")
    session = onnxruntime.InferenceSession(done.file)
    for num in (1, 5):
        [found] = session.run(None, {"images": images(num, 16).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), ours(trained_run, images(num, 16)))
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["input"])["mean"] == [0.485, 0.456, 0.406]
    assert b"resnet_dist/models" not in done.file.read_bytes()


def test_a_model_that_takes_one_size_of_the_batch_only(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    path = checkpoint({"name": f"{__name__}:for_four_images", "num_classes": 3})
    with pytest.raises(UsageError, match=r"the model cannot be called with 1 image: .* not written"):
        export(saved(path), "safetensors", tmp_path / "own.safetensors")


def test_a_run_can_start_from_an_exported_file(exported: Exports) -> None:
    model = build_model(ModelRecipe(name="resnet8", num_classes=7), seed=1)
    assert load_weights(model, str(exported("safetensors").file), num_classes=7) == ()


@pytest.mark.parametrize(("format", "suffix"), [("safetensors", "safetensors"), ("torch.export", "pt2")])
def test_a_users_model(checkpoint: WriteCheckpoint, tmp_path: Path, format: str, suffix: str) -> None:
    path = checkpoint({"name": f"{__name__}:pixel_statistics", "num_classes": 3})
    done = export(saved(path), format, tmp_path / f"own.{suffix}")
    assert done.agreement.why_no_val == "the checkpoint is outside of a run directory"


@pytest.mark.parametrize(("format", "suffix"), [("onnx", "onnx"), ("torch.export", "pt2")])
def test_a_model_that_cannot_be_traced(
    checkpoint: WriteCheckpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str, suffix: str
) -> None:
    path = checkpoint({"name": f"{__name__}:two_paths", "num_classes": 3})
    with pytest.raises(UsageError, match=r"two_paths cannot be exported.*Allowed: --format safetensors"):
        export(saved(path), format, tmp_path / "out" / f"own.{suffix}")
    assert is_empty(tmp_path / "out")
    assert capfd.readouterr() == ("", "")  # torch would print the graph


def test_float64_weights_are_rounded_and_this_is_said(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    path = checkpoint({"name": "resnet8", "num_classes": 3}, precision="float64")
    done = export(saved(path), "safetensors", tmp_path / "own.safetensors")
    assert done.remarks == ("The model was trained in float64; the weights in the file are rounded to float32.",)
    assert 0 < done.agreement.largest_difference < 1e-5 * done.agreement.largest_output


def test_a_wrong_target_is_found_and_nothing_is_written(
    resnet18: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_dicts, "_norm_layer", lambda about: {})  # torchvision's own epsilon
    with pytest.raises(UsageError, match=r"outputs differ by up to .* not written"):
        export(saved(resnet18), "torchvision", tmp_path / "out" / "small.pth")
    assert is_empty(tmp_path / "out")


def test_other_tensors_are_found_and_nothing_is_written(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(model: nn.Module) -> dict[str, Tensor]:
        return {
            name: one.half().float() if one.is_floating_point() else one for name, one in model.state_dict().items()
        }

    written = state_dicts.save_safetensors

    def save(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(state_dicts, "tensors_of", rounded)
            written(*arguments)

    monkeypatch.setattr(state_dicts, "save_safetensors", save)
    with pytest.raises(UsageError, match=r"has other values of .* not written"):
        export(saved(trained_run), "safetensors", tmp_path / "out" / "small.safetensors")
    assert is_empty(tmp_path / "out")


def test_outputs_that_are_not_finite(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    path = checkpoint({"name": f"{__name__}:not_finite", "num_classes": 3})
    with pytest.raises(UsageError, match="outputs are not finite"):
        export(saved(path), "safetensors", tmp_path / "own.safetensors")


def test_a_folder_that_cannot_be_written(trained_run: Path) -> None:
    with pytest.raises(UsageError, match=r"--output /proc/small.safetensors: .* Allowed: a file in a folder"):
        export(saved(trained_run), "safetensors", Path("/proc/small.safetensors"))


def test_the_command_says_what_was_written_and_how_it_was_checked(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small.safetensors"
    assert cli.main(["export", str(trained_run), "--format", "safetensors", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "resnet8, 7 classes, step 6, moving average of the weights",
        "21 val images at 16 px, central crop 0.875",
        "in the safetensors package, on 4 random and 8 val images:",
        "tensors equal bit by bit, largest difference 0 of outputs up to",
        f"{output}.md (model card)",
    ):
        assert part in printed
    assert cli.main(["export", str(trained_run), "--format", "safetensors", "--output", str(output)]) == 64
    assert "exists already. Allowed: delete it, or another name" in capsys.readouterr().err
    checkpoint = trained_run / "checkpoints" / "step-00000002"
    assert cli.main(["export", str(checkpoint), "--format", "torchvision", "--output", f"{tmp_path}/a.pth"]) == 64
    assert "torchvision has no resnet8. Allowed: --format safetensors, torch.export, onnx" in capsys.readouterr().err

"""The code in a model card runs as it stands, and the text of others stays text."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launcher.inference.export.comparison import images_for
from launcher.inference.export.exporting import Exported, export
from launcher.inference.trained import saved

WriteCheckpoint = Callable[..., Path]
Exports = Callable[..., Exported]


def run_card(done: Exported, image: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code in a card defines, in the folder of its file, for the image "photo.jpg"."""
    folder = done.file.parent
    shutil.copy(image, folder / "photo.jpg")
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", done.card.read_text(), flags=re.DOTALL)
    assert len(code) == 3
    defined: dict[str, Any] = {}
    exec("\n".join(code), defined)
    return defined


@pytest.mark.parametrize("format", ["safetensors", "torch.export", "onnx"])
def test_code_of_a_card(
    trained_run: Path,
    images: Path,
    exported: Exports,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format: str,
) -> None:
    done = exported(format)
    first = min((images / "val").rglob("*.png"))
    defined = run_card(done, first, monkeypatch)
    evaluated = images_for(saved(trained_run)).val
    assert evaluated is not None
    torch.testing.assert_close(defined["batch"], evaluated[:1])
    with torch.no_grad():
        logits = saved(trained_run).load().model(evaluated[:1])
    torch.testing.assert_close(defined["probabilities"], logits.softmax(dim=1)[0])
    best = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")[int(logits.argmax())]
    assert capsys.readouterr().out.splitlines()[0].endswith(f"%  {best}")
    assert "With this number of images, top-1 is uncertain: " in done.card.read_text()


@pytest.mark.parametrize("format", ["torchvision", "timm", "safetensors"])
def test_code_of_a_card_with_another_epsilon(
    resnet18: Path, images: Path, exported: Exports, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    done = exported(format, resnet18)
    defined = run_card(done, images / "val" / "ant" / "0.png", monkeypatch)
    with torch.no_grad():
        expected = saved(resnet18).load().model(defined["batch"])
        torch.testing.assert_close(defined["model"](defined["batch"]), expected, rtol=0, atol=0)
    assert "eps=0.001" in done.card.read_text()


def test_the_header_has_the_accuracy_with_its_label(resnet18: Path, exported: Exports) -> None:
    done = exported("timm", resnet18)
    assert json.loads(done.sidecar.read_text())["pretrained_cfg"]["crop_pct"] == 0.875
    card = done.card.read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "timm"
    [result] = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "shapes", "type": "imagefolder", "split": "val"}
    assert result["metrics"][0]["value"] == 0.75
    assert (
        result["metrics"][0]["name"]
        == "top-1 (the val images at 32 px, central crop 0.875, weights of the step, float32)"
    )
    assert "# license: add" in card
    assert "/data/of/somebody" not in card


def test_names_of_others_are_no_markup(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    hostile = ("<script>alert(1)</script>", "`x` | [y](http://z)", "\x1b[2Jgone")
    path = checkpoint({"name": "resnet8", "num_classes": 3}, classes=hostile)
    done = export(saved(path), "safetensors", tmp_path / "own.safetensors")
    [line] = [line for line in done.card.read_text().splitlines() if line.startswith("0 `")]
    assert line == "0 `<script>alert(1)</script>`, 1 `'x' / [y](http://z)`, 2 `gone`"
    assert "\x1b" not in done.card.read_text() + done.sidecar.read_text()


def test_without_names_and_accuracy(copied_run: Path, tmp_path: Path) -> None:
    """A checkpoint of version 0.1 outside of its run, which was not evaluated at this step."""
    folder = tmp_path / "step-00000006"
    shutil.copytree(copied_run / "checkpoints" / "step-00000006", folder)
    state = json.loads((folder / "state.json").read_text())
    del state["classes"], state["metrics"]
    content = (json.dumps(state)).encode()
    _replace(folder, "state.json", content)
    done = export(saved(folder), "safetensors", tmp_path / "own.safetensors")
    card = done.card.read_text()
    assert "Not measured for these weights: the run did not evaluate step 6" in card
    assert "The names of the classes were not recorded." in card
    assert "model-index" not in card
    assert "(no val images: the checkpoint is outside of a run directory)" in card


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint and its hash."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))

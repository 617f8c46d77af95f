"""The methods of `launcher.Run` that use a trained model."""

from __future__ import annotations

from pathlib import Path

import torch

import launcher


def test_model_predict_and_export(trained_run: Path, images: Path, tmp_path: Path) -> None:
    run = launcher.load_run(trained_run)
    assert list(run.checkpoints) == [2, 4, 6]
    assert run.classes == ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
    newest, first = run.model(), run.model("model", step=2)
    assert isinstance(newest, torch.nn.Module)
    assert not newest.training
    assert not torch.equal(newest.get_parameter("fc.weight"), first.get_parameter("fc.weight"))
    [found] = run.predict([images / "val" / "ant" / "0.png"], top=2)
    assert len(found.guesses) == 2
    assert found.guesses[0].probability >= found.guesses[1].probability
    file = run.export("safetensors", tmp_path / "small.safetensors", step=4)
    assert file.with_name("small.safetensors.md").exists()

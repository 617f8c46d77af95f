"""The table of speed keys is the measured one, and the GPU benchmark runs on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import page, training_gpu
from benchmarks.measure import RESULTS
from resnet_dist.recipe.schema import SpeedRecipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_table_of_speed_keys_is_made_from_its_json_file() -> None:
    """Where this fails: python -m benchmarks.page"""
    text = page.SPEED_PAGE.read_text()
    assert (RESULTS / "speed_keys.json").exists()
    assert page.speed_page(text) == text
    assert "| defaults " in text


def test_every_speed_key_is_explained() -> None:
    text = page.SPEED_PAGE.read_text()
    for field in dataclasses.fields(SpeedRecipe):
        assert f"\n| `speed.{field.name}` | {str(field.default).lower()} |" in text


def test_the_gpu_benchmark_needs_only_torch_and_torchvision() -> None:
    absent = ("ray", "nvidia", "deepspeed", "pydantic", "yaml", "tensorboard", "safetensors", "timm", "launcher")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import benchmarks.training_gpu, resnet_dist.build"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_gpu_benchmark_runs_on_a_cpu(
    one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # seconds, with nothing compiled
    assert training_gpu.main(["--device", "cpu", "--quick", "--folder", str(tmp_path)]) == 0
    [file] = tmp_path.glob("*-cpu.json")
    found = json.loads(file.read_text())
    [line] = found["peers"]
    assert {"ours", "minimal", "torchvision"} <= set(line["images_per_s"])
    assert line["absent"]["ours, CUDA graph"] == "no GPU"
    assert set(found["ablation"][0]["images_per_s"]) >= {"defaults", "channels_last: false", "sgd_kernel: loop"}
    assert found["ablation"][0]["absent"]["copy_stream: false"] == "no GPU"
    assert found["profile"][0]["by_kind_ms"]["convolutions"] > 0
    assert file.with_suffix(".md").read_text() in capsys.readouterr().out


def test_without_a_gpu_it_prints_advice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        training_gpu.main([])
    assert ended.value.code == 2
    assert "--device cpu --quick" in capsys.readouterr().err

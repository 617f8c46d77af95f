"""The table of speed keys is the measured one, and the GPU benchmark runs on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_proof, page, training_gpu
from benchmarks.gpu_sections import SECTIONS, SHIPPED, SHIPPED_BATCH, SHIPPED_SPAN
from benchmarks.measure import FAILED, RESULTS
from benchmarks.peers import Setting
from benchmarks.proof import ProofFile, check
from launcher.config import load as configs
from launcher.config.reference import meanings
from resnet_dist.recipe.schema import EXPERIMENTAL, BatchNormRecipe, SpeedRecipe

ROOT = Path(__file__).parents[2]


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


def test_experimental_speed_keys_are_off_and_labelled() -> None:
    comments = meanings(SpeedRecipe)
    for name in EXPERIMENTAL:
        assert getattr(SpeedRecipe(), name) is False
        assert "experimental" in comments[name]


# Hides every installed package but those that torch and torchvision require, from this process and from its children.
SITE = """
import importlib.machinery, re, sys

class Allowed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN or name in ("nvidia.dali", "nvidia.nvimgcodec")
        return None if hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        found = super().find_distributions(*context)
        return (one for one in found if re.sub("[-_.]+", "-", one.metadata["Name"]).lower() in ALLOWED)

sys.meta_path[:] = [Allowed if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
"""


def required(*names: str) -> set[str]:
    """The distributions that these need, with themselves."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The result of benchmarks/gpu.sh on a CPU with only torch and torchvision, and its output."""
    folder = tmp_path_factory.mktemp("alone")
    allowed = required("torch", "torchvision")
    installed = importlib.metadata.packages_distributions()
    hidden = {name for name, of in installed.items() if not allowed & set(map(canonicalize_name, of))}
    assert {"ray", "deepspeed", "pydantic", "yaml", "timm", "safetensors", "pytest"} <= hidden
    hidden = hidden - {"benchmarks", "resnet_dist"} | {"launcher", "cluster"}
    (folder / "sitecustomize.py").write_text(f"HIDDEN = {sorted(hidden)!r}\nALLOWED = {sorted(allowed)!r}\n{SITE}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    environment = {**kept, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    checked = subprocess.run([sys.executable, "-c", "import yaml"], env=environment, capture_output=True, text=True)
    assert "No module named 'yaml'" in checked.stderr
    command = ["bash", "benchmarks/gpu.sh", "--device", "cpu", "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = folder.glob("*-cpu-quick.json")
    assert file.with_suffix(".md").read_text() in done.stdout
    return json.loads(file.read_text()), done.stdout


def test_gpu_sh_runs_every_section_with_torch_and_torchvision_alone(alone: tuple[dict[str, Any], str]) -> None:
    found, output = alone
    assert list(found["sections"]) == list(SECTIONS)
    assert not any(section["problem"] for section in found["sections"].values())
    lines = [line for section in found["sections"].values() for line in section["lines"]]
    absent = {name: why for line in lines for name, why in line.get("absent", {}).items()}
    assert absent["timm"] == "timm is not installed (pip install timm)"
    assert absent["DALI"].startswith("it is not installed")
    assert absent["tests/gpu"] == "pytest is not installed"
    assert not any(why.startswith(FAILED) for why in absent.values())
    assert found["size"] == "quick"
    assert len(found["hashes"]["code"]) == 64
    assert "To send it in: run `python -m benchmarks.page`" in output


def test_its_sections_compare_what_they_say(alone: tuple[dict[str, Any], str]) -> None:
    sections = alone[0]["sections"]

    def speeds(name: str) -> set[str]:
        return {peer for line in sections[name]["lines"] for peer in line.get("images_per_s", ())}

    assert speeds("step") == {"ours", "minimal", "torchvision"}
    assert speeds("shipped") == {"rn50_8node"}
    assert speeds("ddp") == {"ours", "ours, DDP", "plain DDP"}
    assert speeds("norms") == {"ours", "ours, exchanged batch norm"}
    assert speeds("input") == {"synthetic", "torchvision"}
    assert speeds("resolutions") == {"ours, 16 px", "ours, 32 px"}
    assert speeds("ablation") == {"defaults", "channels_last: false", "sgd_kernel: fused", "sgd_kernel: loop"}
    assert sections["ddp"]["lines"][0]["absent"]["ours, DDP, CUDA graph"] == "no GPU"
    assert sections["profile"]["lines"][0]["by_kind_ms"]["convolutions"] > 0
    what = {line["what"] for line in alone[0]["checks"]}
    assert {"ours, float32, 2 / minimal, time", "torchvision, float32, 2 / synthetic, speed"} <= what


def test_a_section_that_fails_or_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    proof = ProofFile("quick", torch.device("cpu"), tmp_path)
    broken = dataclasses.replace(training_gpu.CPU, model="no_such_model")
    assert training_gpu.measured(proof, broken, torch.device("cpu"), ["step", "graph"], minutes=3) == 2
    found = json.loads((tmp_path / f"{proof.name}.json").read_text())
    for section in ("step", "graph"):
        reasons = (
            {**found["sections"][section]["lines"][0]["absent"], "no": ""}
            if found["sections"][section]["lines"]
            else {}
        )
        problem = found["sections"][section]["problem"] + reasons.get("ours", "")
        assert "no_such_model" in problem
    assert all(line["reached"] is False for line in found["checks"])

    slow = dataclasses.replace(training_gpu.CPU, steps=10**9)
    sections = training_gpu.Sections(slow, torch.device("cpu"), time.monotonic() + 60)
    ran = sections.run("graph", limit_s=6.0)
    assert ran.problem.startswith("stopped after 6 s")
    assert ran.failed


def test_a_section_that_would_not_fit_is_listed_as_not_run(tmp_path: Path) -> None:
    proof = ProofFile("quick", torch.device("cpu"), tmp_path)
    assert training_gpu.measured(proof, training_gpu.CPU, torch.device("cpu"), ["step", "graph"], minutes=0.1) == 0
    found = json.loads((tmp_path / f"{proof.name}.json").read_text())
    assert found["sections"] == {}
    assert set(found["not_run"]) == {"step", "graph"}
    assert "not run: graph (it takes about 20 s, and 6 s were left)" in (tmp_path / f"{proof.name}.md").read_text()


def test_the_expected_times_fit_into_8_minutes() -> None:
    assert list(training_gpu.EXPECTED_S) == list(SECTIONS)
    assert sum(training_gpu.EXPECTED_S.values()) + training_gpu.MARGIN_S <= 8 * 60


def test_the_step_of_the_shipped_config_is_that_of_the_file() -> None:
    config = configs.load(ROOT / "configs" / "rn50_8node.yaml", [])
    setting = Setting(SHIPPED_BATCH, 224, precision="bfloat16")
    measured = setting.recipe(batch_norm=BatchNormRecipe(span=SHIPPED_SPAN), **SHIPPED)
    assert SHIPPED_BATCH * config.workers.most == config.batch.size
    for part in ("batch_norm", "optimizer", "regularization", "precision", "speed"):
        assert getattr(measured, part) == getattr(config, part), part
    assert (measured.model.name, measured.data.resolution) == (config.model.name, config.data.resolution)


def test_without_a_gpu_it_prints_advice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for main, arguments in ((training_gpu.main, []), (gpu_proof.main, ["hour"])):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "--device cpu" in capsys.readouterr().err


@pytest.fixture
def sent_in(tmp_path: Path) -> dict[str, Any]:
    """A result file as it would come from a GPU, in tmp_path."""
    training_gpu.main(["--device", "cpu", "--only", "graph", "--folder", str(tmp_path)])
    [file] = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    content |= {"device": "cuda", "gpu": {"GPUs": "1", "driver": "580.95", "NCCL": "2.30.7"}}
    content["machine"] |= {"gpu": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "cudnn": 92400}
    content["checks"] = [
        check("best of ours / the best published with PyTorch", "3,100 images/s", "2,844 images/s", True),
        check("torchvision / synthetic, speed", "0.900", "at least 0.97", False),
        check("speed", "3,100 images/s"),
    ]
    content["not_run"] = {"ablation": "no time was left"}
    (tmp_path / "2026-12-01-nvidia-h100-80gb-hbm3-quick.json").write_text(json.dumps(content))
    file.with_suffix(".md").unlink()
    return dict(content)


def test_the_pages_show_the_results_that_were_sent_in(sent_in: dict[str, Any], tmp_path: Path) -> None:
    shown = page.page(tmp_path)
    assert page.NO_GPU not in shown
    assert "### 2026-12-01-nvidia-h100-80gb-hbm3-quick" in shown
    assert f"- SHA-256 of the code: `{sent_in['hashes']['code']}`" in shown
    assert "driver 580.95; NCCL 2.30.7" in shown
    assert "- not run: ablation (no time was left)" in shown
    tried = page.tried_page(page.TRIED_PAGE.read_text(), tmp_path)
    for text in (shown, tried):
        [row] = [line for line in text.splitlines() if line.startswith("| quick")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        commit, torch_version = sent_in["commit"] or "unknown", sent_in["machine"]["torch"]
        assert cells == [
            *("quick", "NVIDIA H100 80GB HBM3", sent_in["time"][:10], commit, torch_version, "1 of 2", "ablation")
        ]
    assert page.NO_RESULT not in tried
    assert "cpu-quick" not in shown  # a check of the script is no result


def test_docs_tried_is_made_from_the_results() -> None:
    """Where this fails: python -m benchmarks.page"""
    text = page.TRIED_PAGE.read_text()
    assert "<!-- gpu proofs -->" in text
    assert page.tried_page(text) == text

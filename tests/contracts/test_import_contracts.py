"""The import contracts of pyproject.toml detect forbidden imports, each added to a copy of the packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "resnet_dist", "cluster")
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = [contract["name"] for contract in LINTER["contracts"]]


class Plant(NamedTuple):
    """A forbidden import: the contract that it breaks, the file it is added to, and the module it imports."""

    contract: str
    file: str
    module: str


PLANTS = [
    Plant("Layers of launcher", "launcher/errors.py", "launcher.cli"),
    Plant("Layers of launcher", "launcher/local/run.py", "launcher.ray_backend.driver"),
    Plant("Layers of launcher", "launcher/api.py", "launcher.study.plan"),
    Plant("Layers of launcher", "launcher/new_module.py", "launcher.errors"),  # in no layer
    Plant("Layers of resnet_dist", "resnet_dist/training/device.py", "resnet_dist.build"),
    Plant("Layers of resnet_dist", "resnet_dist/engines/ddp.py", "resnet_dist.checkpoint.format"),
    Plant("Layers of resnet_dist", "resnet_dist/new_module.py", "resnet_dist.errors"),
    Plant("Layers of cluster", "cluster/spec.py", "cluster.kubernetes.manifests"),
    Plant("Layers of cluster", "cluster/new_module.py", "cluster.errors"),
    Plant(
        "resnet_dist does not know the control plane, Ray, pydantic or YAML",
        "resnet_dist/errors.py",
        "launcher.exit_codes",
    ),
    Plant(
        "resnet_dist does not know the control plane, Ray, pydantic or YAML", "resnet_dist/models/resnet.py", "pydantic"
    ),
    Plant(
        "cluster makes text: it knows neither the other packages nor Ray nor torch",
        "cluster/spec.py",
        "launcher.exit_codes",
    ),
    Plant("cluster makes text: it knows neither the other packages nor Ray nor torch", "cluster/profile.py", "torch"),
    Plant("A recipe is read without torch", "resnet_dist/recipe/schema.py", "torch"),
    Plant("Only launcher.ray_backend imports Ray", "launcher/worker/train.py", "ray"),
    Plant(
        "Only data.decoding.dali and data.decoding.regions import nvidia",
        "resnet_dist/data/loader.py",
        "nvidia",
    ),
    Plant("Only engines.zero imports DeepSpeed", "resnet_dist/training/checkpointing.py", "deepspeed"),
    Plant("Only object_stores imports fsspec", "resnet_dist/checkpoint/mirror.py", "fsspec"),
    Plant("Only telemetry.weights_and_biases imports wandb", "launcher/worker/sinks.py", "wandb"),
    Plant("Only data.sources.parquet imports pyarrow", "resnet_dist/data/sources/packed.py", "pyarrow"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages; the linter caches there what it has read of them."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def planted(copy: Path, request: pytest.FixtureRequest) -> Iterator[Plant]:
    plant: Plant = request.param
    file = copy / plant.file
    before = file.read_text() if file.exists() else None
    file.write_text(f"{before or ''}\nimport {plant.module}\n")
    yield plant
    if before is None:
        file.unlink()
    else:
        file.write_text(before)


def outcomes(folder: Path) -> dict[str, str]:
    """KEPT or BROKEN by contract."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-logo"], cwd=folder, capture_output=True, text=True)
    found = dict(re.findall(r"^(.+) (KEPT|BROKEN)", done.stdout, re.MULTILINE))
    assert list(found) == CONTRACTS, done.stdout + done.stderr
    return found


def test_without_a_forbidden_import_all_contracts_are_kept(copy: Path) -> None:
    assert outcomes(copy) == dict.fromkeys(CONTRACTS, "KEPT")


@pytest.mark.parametrize("planted", PLANTS, indirect=True, ids=lambda plant: f"{plant.module} in {plant.file}")
def test_a_forbidden_import_breaks_its_contract_and_no_other(planted: Plant, copy: Path) -> None:
    assert [name for name, outcome in outcomes(copy).items() if outcome == "BROKEN"] == [planted.contract]


def test_every_contract_is_broken_by_a_planted_import() -> None:
    assert {plant.contract for plant in PLANTS} == set(CONTRACTS)

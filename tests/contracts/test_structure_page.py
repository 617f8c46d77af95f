"""docs/structure.md lists the packages that exist, in the order of their layers, and each is within its budget."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "structure.md"
PACKAGES = ("launcher", "resnet_dist", "cluster")


class Row(NamedTuple):
    path: str  # "launcher/run/" or "launcher/api.py"
    purpose: str
    budget: int  # lines of Python


def rows(package: str) -> list[Row]:
    """The rows of the package's table."""
    pattern = rf"^\| `({package}/[^`]+)` \| ([^|]+) \| ([\d,]+) \|$"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [Row(path, purpose.strip(), int(budget.replace(",", ""))) for path, purpose, budget in found]


def num_lines(path: Path) -> int:
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_lists_every_sub_package_and_module(package: str) -> None:
    modules = {f"{package}/{file.name}" for file in (ROOT / package).glob("*.py")} - {f"{package}/__init__.py"}
    folders = {f"{package}/{file.parent.name}/" for file in (ROOT / package).glob("*/__init__.py")}
    listed = [row.path for row in rows(package)]
    assert sorted(listed) == sorted(modules | folders)
    assert all(row.purpose for row in rows(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_is_in_the_order_of_the_layers(package: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [package]]
    level = {name: number for number, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    levels = [level[Path(row.path).stem] for row in rows(package)]
    assert levels == sorted(levels)


@pytest.mark.parametrize("row", [row for package in PACKAGES for row in rows(package)], ids=lambda row: row.path)
def test_a_package_is_within_its_budget(row: Row) -> None:
    assert num_lines(ROOT / row.path) <= row.budget, "raise the budget in docs/structure.md, and say why in the commit"


def test_every_path_on_the_page_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])(?:launcher|resnet_dist|cluster|configs|docs|tests|benchmarks)/[\w./]*\w/?", text)
    linked = [f"docs/{target}" for target in re.findall(r"\]\(([^)#:]+)", text)]
    missing = sorted({path for path in [*named, *linked] if not (ROOT / path).exists()})
    assert named
    assert missing == []

"""docs/versions.md has the ranges of pyproject.toml and the versions of constraints.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_required_and_tested_versions_are_those_of_the_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (item for items in project["optional-dependencies"].values() for item in items)
    ranges = {
        match[1]: match[2]
        for item in [*project["dependencies"], *extras]
        if (match := re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", item))
    }
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    table = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) or later \| ([\d.]+) \|", (ROOT / "docs/versions.md").read_text(), re.M
    )
    assert {name for name, _, _ in table} == set(tested)
    assert {name: least for name, least, _ in table} == {name: ranges[name] for name in tested}
    assert {name: version for name, _, version in table} == tested


def test_the_python_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "| Python | 3.11 to 3.13 |" in (ROOT / "docs/versions.md").read_text()

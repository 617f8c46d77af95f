"""README.md is short, its config trains, its links lead somewhere, and its figure shows what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.rules import problems

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_it_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_its_config_has_at_most_12_lines_and_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 12
    file = tmp_path / "digits.yaml"
    file.write_text(text)
    assert problems(configs.load(file)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_largest_differences_are_those_of_the_figure() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "one_curve.json").read_text())
    largest = found["largest_difference"]
    num_steps = len(found["losses"]["float64"]["1"])
    text = " ".join(README.split())
    assert f"at most {largest['float64']['any step']:.1e} over {num_steps} steps" in text
    assert f"by {largest['float32']['step 1']:.1e} at step 1" in text

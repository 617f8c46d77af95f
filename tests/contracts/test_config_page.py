"""docs/config.md lists every key."""

from __future__ import annotations

from pathlib import Path

from launcher.config.reference import PAGE, page


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m launcher.config.reference"


def test_a_key_has_its_type_default_and_meaning() -> None:
    assert "| data.resolution | whole number | 224 | height and width of the network's input in pixels |" in page()
    assert "| data.mean | list of 3 numbers | [0.485, 0.456, 0.406] | " in page()
    assert "| schedule.milestones | list of durations | [] | " in page()
    assert "| checkpoint.keep_every | duration or null | null | " in page()
    assert Path(PAGE).name == "config.md"


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| ")]
    assert len(rows) > 80
    assert [row for row in rows if not row.removesuffix("|").rpartition("|")[2].strip()] == []

"""docs/config.md names every key that there is."""

from __future__ import annotations

from pathlib import Path

from launcher.config.reference import PAGE, page


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m launcher.config.reference"


def test_a_key_has_its_type_default_and_meaning() -> None:
    row = "| data.resolution | whole number | 224 | pixels, height and width |"
    assert row in page().splitlines()
    assert Path(PAGE).name == "config.md"

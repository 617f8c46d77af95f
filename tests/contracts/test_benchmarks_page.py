"""docs/benchmarks.md shows the results in benchmarks/results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_results() -> None:
    command = [sys.executable, "-c", "from benchmarks.page import page; print(page(), end='')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert shown == done.stdout, "update it: python -m benchmarks.page"

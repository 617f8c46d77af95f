"""docs/benchmarks.md shows the figures that are in benchmarks/results, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_results_say() -> None:
    command = [sys.executable, "-c", "from benchmarks.report import page; print(page(), end='')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert shown == done.stdout, "write it anew: python -m benchmarks.report"

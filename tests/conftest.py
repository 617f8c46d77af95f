"""Small images for everyone; and in CI (CI=true) a skipped test is a failed one, unless it needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IN_CI = os.environ.get("CI") == "true"
MAY_BE_MISSING = ("GPU", "KubeRay's strict schema")  # words of a reason that is none to fail for


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    expected_failure = hasattr(report, "wasxfail")  # pytest reports these as skipped too
    if not IN_CI or not report.skipped or expected_failure:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(word in reason for word in MAY_BE_MISSING):
        report.outcome = "failed"
        report.longrepr = f"in CI only tests that need a GPU may be skipped; this one was: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests that are skipped by a mark, a fixture or from within."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Whole files that are skipped while they are imported."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def write_images() -> Callable[[Path], Path]:
    """Write two classes of four noisy images to train/ and val/ of a folder."""

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for label in ("cat", "dog"):
                folder = root / split / label
                folder.mkdir(parents=True)
                for number in range(4):
                    pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.jpg")
        return root

    return write

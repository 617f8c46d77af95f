"""Run directories in the test's folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import report_runs

from launcher.run.directory import RunDirectory


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """`report_runs.write_run` in the test's folder."""
    return functools.partial(report_runs.write_run, tmp_path)

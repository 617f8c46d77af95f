"""In CI tests/conftest.py turns skipped tests into failures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skip(reason="no GPU here")
def test_gpu(): pass

@pytest.mark.skipif(True, reason="needs root")
def test_mark(): pass

def test_within():
    pytest.importorskip("a_package_that_is_not_there")

@pytest.mark.xfail(reason="known", strict=True)
def test_expected(): assert False

def test_plain(): pass
"""


def run_pytest(folder: Path, environment: dict[str, str]) -> str:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_file.py").write_text('import pytest\npytest.skip("no such file", allow_module_level=True)\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    outside = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    done = subprocess.run(
        [*command, "--continue-on-collection-errors"],
        cwd=folder, env={**outside, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "counts"),
    [
        ({}, ["1 passed", "4 skipped", "1 xfailed"]),
        ({"CI": "true"}, ["1 failed", "1 passed", "1 skipped", "1 xfailed", "2 errors"]),
    ],
)
def test_in_ci_only_tests_that_need_a_gpu_may_be_skipped(
    tmp_path: Path, environment: dict[str, str], counts: list[str]
) -> None:
    assert run_pytest(tmp_path, environment).rpartition(" in ")[0] == ", ".join(counts)

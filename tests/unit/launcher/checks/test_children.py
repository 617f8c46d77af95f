"""Child processes that answer, fail, hang, or end with the first failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.checks.children import Child, run_children

CHILD = """
import json, os, signal, sys, time
argument = json.loads(sys.argv[1])
if argument["do"] == "sleep": time.sleep(600)
if argument["do"] == "die": os.kill(os.getpid(), signal.SIGSEGV)
if argument["do"] == "raise": sys.exit("no such device")
print("a warning\\n" + json.dumps({"variable": os.environ["MINE"]}))
"""


@pytest.fixture(autouse=True)
def child_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_child_answers_fails_or_is_killed() -> None:
    children = [Child("child", {"do": do}, {"MINE": do}) for do in ("answer", "die", "raise", "sleep")]
    answer, died, raised, late = run_children(children, 3)
    assert answer == {"variable": "answer"}
    assert "killed by signal 11" in died
    assert raised == "ended with exit code 1: no such device"
    assert late == "no answer within 3 s"


def test_all_children_can_be_ended_with_the_first_failure() -> None:
    started = time.monotonic()
    children = [Child("child", {"do": do}) for do in ("sleep", "raise")]
    late, raised = run_children(children, 500, end_with_first_failure=True)
    assert time.monotonic() - started < 300
    assert raised == "ended with exit code 1: no such device"
    assert "no answer" in late

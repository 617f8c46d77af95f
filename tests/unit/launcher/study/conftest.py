"""A base config and study files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.study import load
from launcher.study.plan import Plan, plan

BASE = """\
schema: 1
name: base
storage: runs
duration: 8 steps
model: {name: resnet20, num_classes: 10}
data: {root: images, resolution: 16}
batch: {size: 32}
schedule: {peak_lr: 0.05}
"""
HEAD = "study: 1\nname: small\nbase: base.yaml\n"

Write = Callable[[str], Path]
MakePlan = Callable[..., Plan]


@pytest.fixture
def write_study(tmp_path: Path) -> Write:
    """Write a study file, whose first three lines are HEAD, beside its base config."""

    def write(text: str) -> Path:
        (tmp_path / "base.yaml").write_text(BASE)
        file = tmp_path / "study.yaml"
        file.write_text(HEAD + text)
        return file

    return write


@pytest.fixture
def make_plan(write_study: Write) -> MakePlan:
    """The plan of a study file with this text after HEAD."""

    def make(text: str, *overrides: str, full: bool = False) -> Plan:
        return plan(load.load(write_study(text), full=full), overrides)

    return make

"""The operations of a step on two workers, beside a minimal loop with DDP. tests/unit/benchmarks has one worker."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks import step
from benchmarks.peers import Setting
from benchmarks.step import CASES
from benchmarks.workers import on_workers

SETTING = Setting(batch=2, resolution=32)  # ResNet-50


@pytest.mark.parametrize(("name", "largest"), [("two workers", 1.3), ("a shared span", 1.7)])
def test_a_step_on_two_workers_has_few_operations_beside_those_of_a_minimal_loop(name: str, largest: float) -> None:
    found = on_workers(2, step.measure, SETTING, asdict(CASES[name]), 0)
    row = step.rows_of(name, found)[0]
    assert row.ratio.median <= largest, row.note

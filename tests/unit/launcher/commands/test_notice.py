"""A notice that is too short for a save is refused by the plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.notice import lines
from launcher.config import load as config
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError


@pytest.fixture
def run_config(tmp_path: Path) -> RunConfig:
    data: dict[str, Any] = {
        "schema": 1,
        "name": "run",
        "storage": str(tmp_path),
        "data": {"root": "images"},
        "batch": {"size": 8},
        "duration": "40 steps",
        "schedule": {"peak_lr": 0.1},
        "preemption": {"notice_s": 30},
    }
    return config.from_mapping(data, tmp_path)


def saved(folder: Path, write_s: float) -> None:
    """A run that has saved once; steps of 2 s."""
    detail = {"path": "x", "stalled_s": 1.0, "write_s": write_s}
    event = {"kind": "event", "step": 1, "event": "checkpoint", "detail": detail}
    (folder / "run").mkdir()
    train = {"kind": "train", "step": 1, "step_time_s": 2.0}
    (folder / "run/metrics.jsonl").write_text(f"{json.dumps(train)}\n{json.dumps(event)}\n")


def test_a_notice_is_not_compared_before_the_first_save(run_config: RunConfig) -> None:
    assert "not compared" in "".join(lines(run_config))


def test_a_notice_that_is_long_enough_is_stated(run_config: RunConfig, tmp_path: Path) -> None:
    saved(tmp_path, write_s=25.0)
    assert "has taken 30.0 s" in "".join(lines(run_config))


def test_a_notice_shorter_than_a_save_and_two_steps_is_refused(run_config: RunConfig, tmp_path: Path) -> None:
    saved(tmp_path, write_s=25.1)
    with pytest.raises(ConfigError, match=r"preemption\.notice_s: found 30, .* 30\.1 s"):
        list(lines(run_config))


def test_a_run_without_a_notice_says_nothing(run_config: RunConfig, tmp_path: Path) -> None:
    without = dataclasses.replace(run_config, preemption=dataclasses.replace(run_config.preemption, notice_s=None))
    assert list(lines(without)) == []

"""What a plan says of a config that is allowed and surprising."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cli

CONFIG = str(Path(__file__).parents[3] / "configs" / "rn50_8node.yaml")


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert cli.main(["plan", CONFIG, *overrides]) == 0
    return capsys.readouterr().out


def test_a_batch_with_more_than_the_data_set_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "WARNING" not in plan(capsys)
    assert "WARNING: a batch has more than the 5,000 images" in plan(capsys, "data.num_samples=5000")


def test_the_average_that_is_evaluated_is_told_with_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert "moving average" not in plan(capsys)
    assert "about 2,000 steps long" in plan(capsys, "ema={decay: 0.999, every_steps: 2}")

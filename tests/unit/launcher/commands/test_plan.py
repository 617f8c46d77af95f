"""What a plan says of a config that is allowed and surprising."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cli

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert cli.main(["plan", CONFIG, *overrides]) == 0
    return capsys.readouterr().out


def test_a_batch_with_more_than_the_data_set_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "WARNING" not in plan(capsys)
    assert "WARNING: a batch has more than the 5,000 images" in plan(capsys, "data.num_samples=5000")


def test_the_average_that_is_evaluated_is_told_with_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert "moving average" not in plan(capsys)
    assert "about 2,000 steps long" in plan(capsys, "ema={decay: 0.999, every_steps: 2}")


def test_the_span_that_auto_chooses_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "chosen by auto" not in plan(capsys)
    chosen = plan(capsys, "batch_norm={span: auto}", "batch.size=8320")
    assert "130 spans of 64 images" in chosen
    assert "span 64, chosen by auto: the divisor of 8,320 nearest 64" in chosen
    assert "WARNING" not in chosen


def test_a_batch_without_a_span_for_auto_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(plan(capsys, "batch_norm={span: auto}", "batch.size=8209").split())  # a prime
    assert "1 spans of 8209 images" in text
    assert (
        "WARNING: span global: no divisor of 8,209 lies between 32 and 128; statistics over the whole batch are the"
        " slowest choice on a cluster"
    ) in text
    assert "WARNING" not in plan(capsys, "batch_norm={span: global}", "batch.size=8209")

"""One file, four ways to run it, one loss curve: float64, shares of 37 samples that are not equal.

A job of a Ray cluster, the fourth, is in test_submit_ray.py, which has one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Train = Callable[..., str]
Losses = Callable[[Path], dict[int, float]]
OneCurve = Callable[[Path], None]


@pytest.mark.smoke
def test_one_process_trains_all_steps_and_is_marked_finished(one_process: Path, losses_of: Losses) -> None:
    assert sorted(losses_of(one_process)) == list(range(1, 21))
    assert (one_process / "FINISHED").exists()


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.smoke), 3])
def test_torchrun_has_the_losses_of_one_process(
    config_file: Path, train: Train, assert_one_curve: OneCurve, workers: int
) -> None:
    train(f"workers={workers}", processes=workers)
    assert_one_curve(config_file.parent / "runs" / "tiny")


@pytest.mark.smoke
def test_zero_has_the_losses_of_one_process_within_float32(
    config_file: Path, train: Train, losses_of: Losses, one_process: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    train("engine={name: zero, stage: 2}", "precision=float32", "workers=2", processes=2)
    found, expected = losses_of(config_file.parent / "runs" / "tiny"), losses_of(one_process)
    assert sorted(found) == sorted(expected)
    gaps = [abs(found[step] - loss) / abs(loss) for step, loss in expected.items()]
    assert gaps[0] < 1e-6
    assert max(gaps) < 1e-3


@pytest.mark.ray
@pytest.mark.smoke
def test_ray_has_the_losses_of_one_process(config_file: Path, train: Train, assert_one_curve: OneCurve) -> None:
    train("place=ray", "workers=2")
    assert_one_curve(config_file.parent / "runs" / "tiny")


@pytest.mark.ray
def test_broken_image_ends_a_ray_run_with_65_and_is_never_retried(
    config_file: Path, digits: Path, train: Train, attempts_of: Callable[[Path], list[dict[str, object]]]
) -> None:
    broken = config_file.parent / "broken"
    shutil.copytree(digits, broken)
    victim = sorted((broken / "train" / "3").iterdir())[0]
    victim.write_text("no image")
    output = train(f"data.root={broken}", "place=ray", "workers=2", code=65)
    assert str(victim) in output
    assert "Traceback" not in output
    ended = [line for line in attempts_of(config_file.parent / "runs" / "tiny") if line["event"] == "ended"]
    assert [line["exit_code"] for line in ended] == [65]

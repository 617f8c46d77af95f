"""What a run requires of a cluster of any size: formulas against closed forms and simulation."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from launcher import cli
from launcher.commands.plan_scaling import lines
from launcher.planning.forecast import Forecast, Interval
from launcher.planning.scaling_model import (
    Assumptions,
    Workload,
    best_interval_s,
    estimate,
    goodput,
    rendezvous_requests,
)

CONFIGS = Path(__file__).parents[4] / "configs"
RN50 = Workload(
    workers_per_node=8,
    batch_size=8192,
    micro_batch_size=8192,
    checkpoint_bytes=204_000_000,
    saves=10,
    heartbeat_s=10.0,
    uses_gpus=True,
    image_bytes=115_000.0,
)


def forecast(step_s: float, saving_s: float = 20.0) -> Forecast:
    """A run of 10,000 steps."""
    nothing, training_s = Interval.exactly(0), Interval.exactly(10_000 * step_s)
    return Forecast(
        wall_s=training_s,
        start_s=nothing,
        training_s=training_s,
        evaluation_s=Interval.exactly(100.0),
        saving_s=Interval.exactly(saving_s),
        failures_s=nothing,
        images_per_s=Interval.exactly(RN50.batch_size / step_s),
        workers=64,
        gpus=64,
        evidence="published",
        source="",
    )


def test_a_short_save_is_youngs_square_root() -> None:
    save_s, mtbf_s = 0.01, 1e6
    assert best_interval_s(save_s, mtbf_s) == pytest.approx(math.sqrt(2 * save_s * mtbf_s), rel=1e-3)


def test_the_best_interval_has_a_higher_goodput_than_its_neighbours() -> None:
    for save_s, mtbf_s in ((5.0, 86_400.0), (60.0, 7_200.0), (0.03, 44_000.0)):
        best = best_interval_s(save_s, mtbf_s)
        kept = [goodput(best * factor, save_s, 120.0, mtbf_s) for factor in (0.8, 1.0, 1.25)]
        assert kept[1] == max(kept)


def test_a_save_longer_than_two_failures_has_no_better_interval_than_their_mean() -> None:
    assert best_interval_s(save_s=300.0, mtbf_s=100.0) == 100.0


def test_goodput_agrees_with_a_run_whose_failures_are_drawn() -> None:
    interval_s, save_s, restart_s, mtbf_s = 600.0, 20.0, 90.0, 5_000.0
    chance = random.Random(0)
    kept = spent = 0.0
    while kept < 20_000 * interval_s:
        # Failures have no memory, so each stretch of work, each save and each restart may be looked at alone.
        until_failure = chance.expovariate(1 / mtbf_s)
        if until_failure >= interval_s + save_s:
            kept, spent = kept + interval_s, spent + interval_s + save_s
            continue
        spent += until_failure
        while (until_failure := chance.expovariate(1 / mtbf_s)) < restart_s:
            spent += until_failure
        spent += restart_s
    assert goodput(interval_s, save_s, restart_s, mtbf_s) == pytest.approx(kept / spent, rel=0.01)


def test_no_progress_is_no_goodput_and_no_overflow() -> None:
    assert goodput(interval_s=1e6, save_s=0.0, restart_s=1.0, mtbf_s=1.0) == 0.0
    assert goodput(interval_s=1.0, save_s=0.0, restart_s=1e6, mtbf_s=1.0) == 0.0


def test_failures_grow_with_the_nodes_and_the_global_batch_does_not() -> None:
    small, large = estimate(8, RN50, Assumptions(), forecast(0.05)), estimate(64, RN50, Assumptions(), forecast(0.01))
    assert large.failures_per_day == pytest.approx(8 * small.failures_per_day)
    assert small.failures_per_day == pytest.approx(8 * 24 * 419 / (54 * 24 * 2048))
    assert (small.per_worker_batch, large.per_worker_batch) == (128, 16)
    assert large.control_per_s == pytest.approx(8 * small.control_per_s)
    assert large.restart_bytes == 64 * 204_000_000


def test_steps_and_saves_are_those_of_the_forecast() -> None:
    found = estimate(8, RN50, Assumptions(mtbf_hours=10.0), forecast(0.05))
    assert (found.step_s, found.config_interval_s) == (pytest.approx(0.05), pytest.approx(60))
    restart_s = 120 + 8 * 204e6 / 5e9
    assert found.config_goodput == pytest.approx(goodput(60, 2.0, restart_s, 10 * 3600 / 8))


def test_more_workers_than_images_give_no_estimate() -> None:
    table = list(lines({8: estimate(8, RN50, Assumptions(), forecast(0.05)), 2_048: None}, Assumptions()))
    assert "    2,048 nodes: more workers than a micro-batch has images" in table


def test_gloos_rendezvous_grows_with_the_square_of_the_workers() -> None:
    counted = {2: 10, 4: 36, 8: 136, 16: 528}  # set, wait and get on a counting store, torch 2.14.1
    assert {workers: rendezvous_requests(workers, uses_gpus=False) for workers in counted} == counted


def test_the_verb_prints_a_column_for_each_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(CONFIGS / "rn50_8node.yaml"), "--nodes", "1,8,64,512", "--mtbf-hours", "1000"]
    assert cli.main(command) == 0
    rows = {line[:30].strip(): line[30:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["nodes"] == ["1", "8", "64", "512"]
    assert rows["workers"] == ["8", "64", "512", "4,096"]
    assert rows["failures per day"] == ["0.024", "0.192", "1.54", "12.3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "eight"], "numbers with commas"),
        (["--nodes", "0"], "numbers from 1"),
        (["--nodes", "8", "--mtbf-hours", "-1"], "--mtbf-hours -1: Allowed: a number above 0"),
        (["--save-s", "1"], "--nodes is missing"),
    ],
)
def test_invalid_options_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CONFIGS / "rn50_8node.yaml"), *options]) == 64
    assert message in capsys.readouterr().err


def test_on_cpus_the_speed_of_a_worker_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(CONFIGS / "digits_cpu.yaml"), "data.num_samples=1442", "--nodes", "1"]
    assert cli.main(command) == 64
    assert "--images-per-s is missing" in capsys.readouterr().err
    assert cli.main([*command, "--images-per-s", "130"]) == 0

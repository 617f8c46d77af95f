"""Hosts die, lose their cable, are drained and come late: the run goes on, and its losses are the untouched run's."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.ray_hosts.conftest import RayHosts, Training

pytestmark = [pytest.mark.lab, pytest.mark.ray]
Train = Callable[..., "Training"]
Losses = dict[int, float]


def assert_same(found: Losses, expected: Losses) -> None:
    """On another number of workers sums are added in another order: the rest of float64 must agree."""
    assert sorted(found) == sorted(expected)
    worst = max(abs(found[step] - loss) / abs(loss) for step, loss in expected.items())
    assert worst < 1e-9, worst


def test_a_run_shrinks_when_a_host_dies_and_grows_when_one_comes_late(
    lab: RayHosts, train: Train, untouched: Losses
) -> None:
    lab.start("w1", "w2", "w3")
    training = train("workers=2..3")
    training.wait_for_step(15)
    lab.kill("w3")
    training.pace(all=1.0)
    training.wait_for_step(25)
    lab.start("w1", "w2", "w3")
    training.wait_for_attempt(3)
    training.pace(all=0.0)
    output = training.end()
    assert training.workers() == [3, 2, 3], output
    died, grown, finished = training.attempts("ended")
    assert (died["facts"]["class"], died["exit_code"]) == ("WorkerLost", 76)
    assert died["facts"]["steps_redone"] <= 10
    assert "more nodes available" in grown["cause"]
    assert finished["exit_code"] == 0
    assert_same(training.losses(), untouched)


def test_a_host_whose_cable_is_out_is_replaced_by_a_spare(lab: RayHosts, train: Train, untouched: Losses) -> None:
    lab.start("w1", "w2", "w3")
    training = train("workers=2")
    training.wait_for_step(15)
    survivor, victim = (training.beat(1, rank)["host"] for rank in range(2))
    [spare] = {"w1", "w2", "w3"} - {survivor, victim}
    lab[victim].cable("down")
    try:
        output = training.end()
    finally:
        lab[victim].cable("up")
        lab.kill(victim)
    assert training.workers() == [2, 2], output
    assert {training.beat(2, rank)["host"] for rank in range(2)} == {survivor, spare}
    assert_same(training.losses(), untouched)


def test_draining_costs_no_step_and_ends_a_run_without_nodes_with_75(
    lab: RayHosts, train: Train, untouched: Losses
) -> None:
    lab.start("w1", "w2")
    training = train("workers=1..2")
    training.wait_for_step(15)
    lab.drain("w2")
    training.wait_for_attempt(2)
    drained = training.attempts("ended")[0]
    assert drained["last_step"] == training.attempts("started")[1]["facts"]["from_step"]
    assert "preempted" in drained["cause"]
    training.wait_for_step(drained["last_step"] + 5)
    lab.drain("w1")
    output = training.end(code=75)
    assert training.workers() == [2, 1], output
    saved = training.attempts("ended")[-1]["last_step"]
    for name in ("w1", "w2"):
        lab.kill(name)
    lab.start("w1", "w2")
    again = train("workers=1..2", "--resume=must")
    assert f"resumes at step {saved + 1}" in again.end()
    assert_same(again.losses(), untouched)


def test_a_node_at_fault_twice_is_left_out_and_named(lab: RayHosts, train: Train, untouched: Losses) -> None:
    lab.start("w1", "w2", "w3")
    training = train("workers=2..3")
    for attempt, step in ((1, 12), (2, 24)):
        training.wait_for_step(step)
        lab["w2"].signal(signal.SIGKILL, "ray::", "Train")
        training.wait_for_attempt(attempt + 1)
    output = training.end()
    assert training.workers() == [3, 3, 2], output
    assert training.attempts("ended")[1]["facts"]["excluded"] == ["w2"]
    assert "node w2 failed 2 times and is excluded" in output
    assert {training.beat(3, rank)["host"] for rank in range(2)} == {"w1", "w3"}
    assert_same(training.losses(), untouched)


def test_the_heads_host_dies_and_the_next_start_goes_on(lab: RayHosts, train: Train, untouched: Losses) -> None:
    lab.start("w1", "w2")
    training = train("workers=2")
    training.wait_for_step(15)
    lab.kill_all()
    training.process.communicate()
    lab.start("w1", "w2")
    again = train("workers=2", "--resume=must")
    again.end()
    assert again.attempts("started")[-1]["facts"]["from_step"] >= 10
    assert_same(again.losses(), untouched)

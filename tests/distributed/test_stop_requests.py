"""A run that is told to stop, suspended, or replaced by another: it saves once, and loses no step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.distributed.fault_runs import FaultRun, assert_nothing_is_left, assert_same_bits, has_ended

Make = Callable[..., FaultRun]


def schedulers_and_a_persons(run: FaultRun) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        run.process.send_signal(number)


def a_key_press_in_a_terminal(run: FaultRun) -> None:
    os.killpg(run.process.pid, signal.SIGINT)  # reaches the child, too, to which its parent passes it on


@pytest.mark.parametrize(("told", "code"), [(schedulers_and_a_persons, 75), (a_key_press_in_a_terminal, 130)])
def test_several_signals_at_once_save_once(fault_run: Make, told: Callable[[FaultRun], None], code: int) -> None:
    run = fault_run()
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(3)
    told(run)
    run.end(code=code)
    saved = [path.name for path in run.directory.checkpoints.iterdir()]
    [attempt] = run.directory.attempts()
    assert saved == [f"step-{attempt.last_step:08d}"]
    assert max(run.losses()) == attempt.last_step  # no step was lost
    assert_nothing_is_left(run)


def test_a_run_that_was_suspended_for_longer_than_a_hang_goes_on(fault_run: Make, undisturbed: FaultRun) -> None:
    run = fault_run(faults={"hang_timeout_s": 5})
    run.start()
    run.wait_for_step(15)
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(7)
    os.killpg(run.process.pid, signal.SIGCONT)
    run.end()
    assert (len(run.directory.attempts()), run.failures()) == (1, [])
    assert_same_bits(run, undisturbed)


def test_a_suspended_run_that_another_host_has_taken_over_names_no_checkpoint_and_ends(fault_run: Make) -> None:
    run = fault_run()
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(12)  # the checkpoint of step 10 is there, or about to be
    run.until(lambda: (run.directory.checkpoints / "step-00000010").exists())
    child = run.pid()
    run.process.send_signal(signal.SIGSTOP)  # the parent, which renews the lease
    [held] = run.directory.lease.glob("*.json")
    (held.parent / "00000002.json").write_text(json.dumps({**json.loads(held.read_text()), "host": "another"}))
    deadline = time.monotonic() + 60
    while not has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert has_ended(child)  # without a word of its parent
    assert max(run.losses()) >= 19
    assert [path.name for path in run.directory.checkpoints.iterdir()] == ["step-00000010"]
    run.process.send_signal(signal.SIGCONT)
    output = run.end(code=69)
    assert "taken" in output
    assert run.directory.fatal() is None
    assert [attempt.ended for attempt in run.directory.attempts()] == [None]  # its record is the other's now

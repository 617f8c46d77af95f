"""A run that is told to stop, suspended, or replaced by another: it saves once, and loses no step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

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


def starts_to_handle_signals(run: FaultRun) -> None:
    """Within the first tenths of a second, before the imports."""
    terminate = 1 << signal.SIGTERM - 1
    status = Path(f"/proc/{run.process.pid}/status")
    run.until(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & terminate)


def trains(run: FaultRun) -> None:
    run.wait_for_step(3)


@pytest.mark.parametrize(("when", "steps"), [(starts_to_handle_signals, False), (trains, True)])
def test_signals_that_do_not_cease_change_nothing_until_the_process_has_ended(
    fault_run: Make, when: Callable[[FaultRun], None], steps: bool
) -> None:
    run = fault_run()
    run.pace(all=0.05)
    run.start()
    when(run)
    while run.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            run.process.send_signal(number)
            time.sleep(0.003)
    output = run.end(code=75)
    attempts = run.directory.attempts()
    assert [(attempt.exit_code, attempt.cause) for attempt in attempts] == [(75, "stopped on request")] * steps
    assert output.count(" received: ") == 1
    assert ("stopped before the first step; nothing was trained" in output) is not steps
    assert "saved at step 0" not in output
    assert_nothing_is_left(run)


def test_a_second_ctrl_c_ends_at_once_and_is_recorded_as_the_users(fault_run: Make) -> None:
    run = fault_run()
    run.pace(all=0.02)
    run.start()
    run.until(lambda: (run.directory.checkpoints / "step-00000010").exists())
    child = run.pid()
    run.pace(all=3600)
    a_key_press_in_a_terminal(run)
    time.sleep(0.5)
    a_key_press_in_a_terminal(run)
    output = run.end(code=130, timeout_s=30)
    assert "Ctrl-C: saving at the next step; Ctrl-C again ends without saving\n" in output
    cause = "ended by a second Ctrl-C; the newest checkpoint is of step 10"
    assert output.splitlines()[-2:] == [
        "Ctrl-C again: ending without saving",
        f"{cause}; the same command resumes the run",
    ]
    assert "Traceback" not in output
    [attempt] = run.directory.attempts()
    assert (attempt.exit_code, attempt.cause) == (130, cause)
    assert attempt.last_step is not None
    assert attempt.end_facts["steps_redone"] == attempt.last_step - 10 >= 0
    run_ended = time.monotonic() + 30
    while not has_ended(child) and time.monotonic() < run_ended:
        time.sleep(0.01)
    assert_nothing_is_left(run)


def closed_terminal() -> int:
    master, terminal = os.openpty()
    os.close(master)
    return terminal


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("output", [closed_terminal, full_disk])
def test_a_run_whose_output_cannot_be_written_is_not_affected(fault_run: Make, output: Callable[[], int]) -> None:
    run = fault_run()
    descriptor = output()
    run.start("duration=8 steps", output=descriptor)
    os.close(descriptor)
    run.end()
    assert [attempt.cause for attempt in run.directory.attempts()] == ["finished"]
    assert sorted(run.losses()) == list(range(1, 9))


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

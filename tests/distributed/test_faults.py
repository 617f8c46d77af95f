"""FaultRun for real, a process under its supervisor ends where the undisturbed one does: same topology, same bits.

Each case is a line: where it strikes, and what is equal after. Several hosts are in tests/lab/ray_hosts.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet_dist.checkpoint import restore
from tests.distributed.fault_runs import USERS_CODE, FaultRun, assert_nothing_is_left, assert_same_bits, environment

Make = Callable[..., FaultRun]


@dataclass(frozen=True)
class Strike:
    """`when` returns at the moment to strike, with the process to strike."""

    name: str
    signal: int
    when: Callable[[FaultRun], int]
    error: str
    most_redone: int = 10  # steps: a checkpoint's interval


def at_a_random_step(run: FaultRun) -> int:
    run.wait_for_step(random.randint(12, 50))
    return run.pid()


def while_a_checkpoint_is_written(run: FaultRun) -> int:
    pid = run.pid()
    run.wait_for_step(19)
    run.until(lambda: any(path.name.startswith(".step-00000020") for path in run.directory.checkpoints.iterdir()))
    return pid


def in_evaluation(run: FaultRun) -> int:
    pid = run.pid()
    run.wait_for_step(20)
    assert not run.has_written('"eval", "step": 20,')
    return pid


def at_start_up(run: FaultRun) -> int:
    run.until(run.directory.attempts)  # a process that is killed before it has a job is replaced without an attempt
    return run.child()


STRIKES = [
    Strike("killed at a random step", signal.SIGKILL, at_a_random_step, "WorkerLost"),
    Strike("killed while a checkpoint is written", signal.SIGKILL, while_a_checkpoint_is_written, "WorkerLost", 11),
    Strike("killed in evaluation", signal.SIGKILL, in_evaluation, "WorkerLost"),
    Strike("killed at start-up", signal.SIGKILL, at_start_up, "WorkerLost", 0),
    Strike("stopped at a random step", signal.SIGSTOP, at_a_random_step, "WorkerHung"),
    Strike("crashed at a random step", signal.SIGSEGV, at_a_random_step, "WorkerLost"),
]


@pytest.mark.parametrize(
    "strike",
    [pytest.param(STRIKES[0], marks=pytest.mark.smoke), *STRIKES[1:]],
    ids=lambda strike: strike.name,
)
def test_a_killed_process_is_replaced_and_the_bits_are_the_same(
    fault_run: Make, undisturbed: FaultRun, strike: Strike
) -> None:
    run = fault_run()
    run.start()
    os.kill(strike.when(run), strike.signal)
    run.end()
    [(error, redone)] = run.failures()
    assert error == strike.error
    assert redone <= strike.most_redone
    assert_same_bits(run, undisturbed)
    assert_nothing_is_left(run)


def test_a_thread_that_hangs_is_noticed_named_and_replaced(fault_run: Make, undisturbed: FaultRun) -> None:
    run = fault_run()
    run.start()
    run.wait_for_step(15)
    run.pace(all=3600)
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    run.end()
    assert [error for error, _ in run.failures()] == ["WorkerHung"]
    assert run.incident().startswith("attempt 1 failed after step 1")
    assert "paced.py" in (run.directory.incident(1) / "stacks/rank-0.txt").read_text()
    assert_same_bits(run, undisturbed)


def test_restarts_without_progress_use_up_the_budget_and_are_told(fault_run: Make) -> None:
    run = fault_run(faults={"hang_timeout_s": 15, "max_failures": 1})
    run.start()
    for attempt in (1, 2):
        os.kill(run.pid(attempt=attempt), signal.SIGKILL)
    output = run.end(code=76)
    assert "2 failures without a later checkpoint; faults.max_failures is 1. What happened:" in output
    fatal = run.directory.fatal()
    assert fatal is not None
    assert "attempt 2, steps 0.., saved 0: WorkerLost" in fatal.message


def test_a_second_start_of_a_run_at_work_is_refused_and_names_the_first(fault_run: Make, undisturbed: FaultRun) -> None:
    run = fault_run()
    run.start()
    run.wait_for_step(3)
    second = [sys.executable, "-m", "launcher.train", str(run.file)]
    done = subprocess.run(second, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 69
    assert f"in use by process {run.process.pid}" in done.stderr
    run.end()
    assert run.failures() == []
    assert_same_bits(run, undisturbed)


def test_a_killed_supervisor_takes_its_process_along_and_the_next_start_goes_on(
    fault_run: Make, undisturbed: FaultRun
) -> None:
    run = fault_run()
    run.start()
    run.wait_for_step(15)
    child = run.pid()
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    run.start("--resume", "must")
    run.end()
    assert_same_bits(run, undisturbed)


def test_a_notice_file_saves_and_ends_with_75(fault_run: Make, tmp_path: Path, undisturbed: FaultRun) -> None:
    notice = tmp_path / "notice"
    run = fault_run(preemption={"notice_file": str(notice)})
    run.start()
    run.wait_for_step(15)
    notice.touch()
    run.pace(all=0.1)
    run.end(code=75)
    [attempt] = run.directory.attempts()
    saved = restore.newest(run.directory.checkpoints)
    assert saved is not None
    assert (attempt.exit_code, attempt.last_step) == (75, saved.step)
    assert max(run.losses()) == saved.step  # no step was lost
    notice.unlink()
    run.pace(all=0)
    run.start()
    run.end()
    assert_same_bits(run, undisturbed)


@pytest.mark.parametrize(
    ("kind", "processes", "message"),
    [
        ("raises", 1, "TwoArgumentsError: its message"),
        ("exits", 1, "SystemExit: 3"),
        ("raises", 2, "TwoArgumentsError: "),
    ],
)
def test_what_the_users_code_raises_is_reported_with_its_name_and_exit_code_1(
    fault_run: Make, kind: str, processes: int, message: str
) -> None:
    run = fault_run(faults={"hang_timeout_s": 15, "max_failures": 1})
    (run.folder / "users.py").write_text(USERS_CODE)
    run.start("model.name=users:build", f"model.arguments.kind={kind}", processes=processes)
    output = run.end(code=1)
    fatal = run.directory.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.kind) == (1, "UserCodeError")
    assert fatal.message.startswith(f"UserCodeError: {message}")
    assert f"error: {message}" in output
    assert "users.py" in output  # the traceback
    assert {attempt.end_facts.get("node") for attempt in run.directory.attempts()} == {None}

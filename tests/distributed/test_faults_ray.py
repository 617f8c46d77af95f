"""Ray's workers on one host are stopped and slowed down: two ranks, so sums are added in another order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.run import heartbeats
from resnet_dist.telemetry.metrics_file import read_metrics
from tests.distributed.fault_runs import USERS_CODE, FaultRun, assert_nothing_is_left, assert_same_bits, has_ended

Make = Callable[..., FaultRun]


def assert_same_losses(found: FaultRun, expected: FaultRun) -> None:
    losses, others = found.losses(), expected.losses()
    assert sorted(losses) == sorted(others)
    assert max(abs(losses[step] - loss) / abs(loss) for step, loss in others.items()) < 1e-9


@pytest.mark.ray
def test_a_stopped_rank_is_named_with_the_stacks_of_the_others_and_replaced(
    fault_run: Make, undisturbed: FaultRun
) -> None:
    run = fault_run(place="ray", workers=2)
    run.start()
    run.wait_for_step(12)
    os.kill(run.pid(rank=1), signal.SIGSTOP)
    run.end(timeout_s=240)
    facts = json.loads((run.directory.incident(1) / "incident.json").read_text())
    assert (facts["class"], facts["rank"]) == ("WorkerHung", 1)
    # rank 0 waits in the exchange of a batch norm, of gradients or of a step's totals
    stacks = (run.directory.incident(1) / "stacks/rank-0.txt").read_text()
    flight = json.loads((run.directory.incident(1) / "flight/rank-0.json").read_text())
    kind = flight["entries"][-1]["profiling_name"].removeprefix("gloo:")
    assert kind in ("all_reduce", "all_gather")
    assert kind in stacks
    assert_same_losses(run, undisturbed)


@pytest.mark.ray
def test_a_straggler_and_a_rank_that_hangs_are_named(fault_run: Make, undisturbed: FaultRun) -> None:
    run = fault_run(place="ray", workers=2)
    run.pace(**{"all": 0.02, "1": 0.6})  # far above what a step computes, on slow machines too
    run.start()
    run.wait_for_step(35)
    [straggler] = [r for r in read_metrics(run.directory.metrics) if r.get("event") == "straggler"]
    assert straggler["detail"]["rank"] == 1
    assert straggler["detail"]["host"] == os.uname().nodename
    run.pace(**{"all": 0.0, "1": 3600})
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    output = run.end(timeout_s=240)
    facts = json.loads((run.directory.incident(1) / "incident.json").read_text())
    assert (facts["class"], facts["rank"], facts["phase"]) == ("WorkerHung", 1, "step")
    assert "paced.py" in (run.directory.incident(1) / "stacks/rank-1.txt").read_text()
    assert "worker 1" in output
    assert_same_losses(run, undisturbed)


@pytest.mark.ray
def test_an_exception_of_a_user_that_ray_cannot_send_is_user_code(fault_run: Make) -> None:
    run = fault_run(place="ray", workers=1, faults={"hang_timeout_s": 15, "max_failures": 0})
    (run.folder / "users.py").write_text(USERS_CODE)
    run.start("model.name=users:build", "model.arguments.kind=raises")
    output = run.end(code=1)
    assert "error: TwoArgumentsError: its message" in output
    [attempt] = run.directory.attempts()
    assert (attempt.exit_code, attempt.end_facts["class"], attempt.end_facts["node"]) == (1, "UserCodeError", None)


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


@pytest.mark.ray
def test_a_second_ctrl_c_ends_ray_too(fault_run: Make) -> None:
    run = fault_run(place="ray", workers=1)
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(3)
    run.pace(all=3600)
    processes = list(descendants(run.process.pid))
    for _ in range(2):
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.5)
    output = run.end(code=130, timeout_s=60)
    assert "Traceback" not in output
    cause = "ended by a second Ctrl-C; there is no checkpoint"
    assert [(attempt.exit_code, attempt.cause) for attempt in run.directory.attempts()] == [(130, cause)]
    deadline = time.monotonic() + 30
    while not all(map(has_ended, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(has_ended, processes))
    assert_nothing_is_left(run)


@pytest.mark.ray
def test_a_killed_worker_is_replaced_by_an_idle_process_with_the_same_bits(
    fault_run: Make, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "undisturbed").mkdir()
    expected = FaultRun(tmp_path / "undisturbed", digits)
    expected.start("workers=2", processes=2)
    expected.end()
    run = fault_run(place="ray", workers=2)
    run.pace(all=0.5)
    run.start()
    run.wait_for_step(1)
    run.until(lambda: len(idle := idle_processes(run)) == 2 and all(seconds > 2 for seconds in idle.values()))
    idle = idle_processes(run)
    os.kill(run.pid(rank=1), signal.SIGKILL)
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    assert "starting again: failure 1 of 3" in run.end(timeout_s=240)
    workers = heartbeats.read(run.directory.logs(2))
    assert {beat.pid for beat in workers.values()} == idle.keys()
    assert_same_bits(run, expected)
    assert_nothing_is_left(run)


def idle_processes(run: FaultRun) -> dict[int, float]:
    """{process id: CPU seconds} of Ray's processes of a run in which nothing runs."""
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            marked = process.name.isdigit() and str(run.folder).encode() in (process / "environ").read_bytes()
            if marked and (process / "cmdline").read_bytes().startswith(b"ray::IDLE"):
                numbers = (process / "stat").read_text().rpartition(")")[2].split()
                found[int(process.name)] = (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return found

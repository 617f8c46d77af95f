"""Two workers of one machine under their supervisor: a lost one is replaced, the other stays in its process.

Each fault has the workers that stay in their processes, and how many steps are done again. The bits are the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.run import heartbeats
from tests.distributed.fault_runs import FaultRun, assert_nothing_is_left, assert_same_bits, has_ended

Make = Callable[..., FaultRun]
TWO = {"workers": 2, "resources": {"local_workers": 2}}


@pytest.fixture(scope="module")
def two_undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> FaultRun:
    """The run on two workers, left alone."""
    run = FaultRun(tmp_path_factory.mktemp("two-undisturbed"), digits, **TWO)
    run.start()
    run.end()
    return run


def pids(run: FaultRun, attempt: int = 1) -> dict[int, int]:
    """The processes of both workers of an attempt."""
    return {rank: run.pid(rank, attempt) for rank in (0, 1)}


def processes(run: FaultRun) -> list[int]:
    """All processes that the main job has started and that run."""
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if not has_ended(pid)]


def spares(run: FaultRun, attempt: int = 1) -> list[int]:
    """The idle processes."""
    return [pid for pid in processes(run) if pid not in pids(run, attempt).values()]


@dataclass(frozen=True)
class Fault:
    """A signal to ranks of the first attempt; which ranks stay in their processes, and how much is done again."""

    name: str
    ranks: tuple[int, ...]
    signal: int
    error: str
    most_redone: int
    stays: tuple[int, ...]


FAULTS = [
    Fault("one worker is killed", (1,), signal.SIGKILL, "WorkerLost", 1, (0,)),
    Fault("the first worker is killed", (0,), signal.SIGKILL, "WorkerLost", 1, (1,)),
    Fault("both workers are killed", (0, 1), signal.SIGKILL, "WorkerLost", 10, ()),
    Fault("one worker is stopped", (1,), signal.SIGSTOP, "WorkerHung", 1, (0,)),
]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(FAULTS[0], marks=pytest.mark.smoke), *FAULTS[1:]],
    ids=lambda fault: fault.name,
)
def test_a_lost_worker_is_replaced_and_the_others_stay_in_their_processes(
    fault_run: Make, two_undisturbed: FaultRun, fault: Fault
) -> None:
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(15)
    before = pids(run)
    for rank in fault.ranks:
        os.kill(before[rank], fault.signal)
    after = pids(run, attempt=2)
    assert tuple(rank for rank in (0, 1) if after[rank] == before[rank]) == fault.stays
    run.end()
    [(error, redone)] = run.failures()
    assert error == fault.error
    assert redone <= fault.most_redone
    second = run.directory.attempts()[1]
    assert second.facts.get("from_memory_of_rank") == (fault.stays[0] if fault.stays else None)
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_workers_that_are_lost_one_after_the_other_cost_no_checkpoint(
    fault_run: Make, two_undisturbed: FaultRun
) -> None:
    """The second one is lost while the group is built again, before a step: the state of the first failure is used."""
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(15)
    before = pids(run)
    run.until(lambda: spares(run))
    [spare, *_] = spares(run)
    os.kill(before[1], signal.SIGKILL)
    run.until(lambda: run.directory.incident(1).is_dir())
    os.kill(spare, signal.SIGKILL)  # it has just got its job
    run.end()
    assert [error for error, _ in run.failures()] in (["WorkerLost"], ["WorkerLost", "WorkerLost"])
    assert all(redone <= 1 for _, redone in run.failures())
    assert run.directory.attempts()[-1].facts["from_memory_of_rank"] == 0
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_a_thread_that_hangs_is_replaced_and_the_other_worker_writes_its_stacks(
    fault_run: Make, two_undisturbed: FaultRun
) -> None:
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(15)
    before = pids(run)
    run.pace(**{"1": 3600})
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    after = pids(run, attempt=2)
    run.end()
    assert [error for error, _ in run.failures()] == ["WorkerHung"]
    assert "worker 1" in run.incident()
    assert after[0] == before[0]
    assert "paced.py" in (run.directory.incident(1) / "stacks/rank-1.txt").read_text()
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_a_worker_is_lost_in_an_evaluation_that_lasts_longer_than_the_parent_waits(
    fault_run: Make, two_undisturbed: FaultRun
) -> None:
    run = fault_run(**TWO)
    slow = run.folder / "slow"
    (run.folder / "users.py").write_text(SLOW_METRIC.format(file=slow))
    run.start("evaluate.batch_size=4", "evaluate.metrics=[users:metric]")
    run.wait_for_step(19)
    before = pids(run)
    slow.touch()  # 45 batches of each worker: 22 s
    run.until(lambda: heartbeats.read(run.directory.logs(1))[0].phase == "evaluate")
    os.kill(before[1], signal.SIGKILL)
    run.until(lambda: run.directory.incident(1).is_dir())
    slow.unlink()
    run.end()
    assert run.failures() == [("WorkerLost", 0)]
    assert run.directory.attempts()[1].facts["from_memory_of_rank"] == 0
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_a_killed_spare_is_replaced_and_the_run_notices_nothing(fault_run: Make, two_undisturbed: FaultRun) -> None:
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(5)
    [spare, *_] = run.until(lambda: spares(run))
    os.kill(spare, signal.SIGKILL)
    run.until(lambda: [pid for pid in spares(run) if pid != spare])
    run.end()
    assert run.failures() == []
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_a_second_ctrl_c_during_a_restart_ends_every_process(fault_run: Make) -> None:
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(12)
    all_processes = [*processes(run), *pids(run).values()]
    os.kill(run.pid(rank=1), signal.SIGKILL)
    run.until(lambda: run.directory.incident(1).is_dir())
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "Ctrl-C" in run.output())
    all_processes += processes(run)
    if run.process.poll() is None:
        run.pause(0.5)
        run.process.send_signal(signal.SIGINT)
    run.end(code=130)
    deadline = time.monotonic() + 20  # they were killed, and take their time to give back their memory
    while not all(has_ended(pid) for pid in all_processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(has_ended(pid) for pid in all_processes)
    assert_nothing_is_left(run)


def test_a_request_to_stop_saves_on_both_workers_and_the_next_start_goes_on(
    fault_run: Make, two_undisturbed: FaultRun
) -> None:
    run = fault_run(**TWO)
    run.start()
    run.wait_for_step(13)
    run.process.send_signal(signal.SIGTERM)
    run.end(code=75)
    [attempt] = run.directory.attempts()
    assert attempt.last_step == max(run.losses())
    assert set(heartbeats.read(run.directory.logs(1))) == {0, 1}
    run.start()
    run.end()
    assert run.failures() == []
    assert_same_bits(run, two_undisturbed)
    assert_nothing_is_left(run)


def test_what_the_second_worker_prints_is_in_its_log(fault_run: Make) -> None:
    run = fault_run(**TWO)
    (run.folder / "users.py").write_text(PRINTING)
    run.start("model.name=users:build", "duration=2 steps", "schedule.warmup=0 steps")
    output = run.end()
    logs = run.directory.logs(1)
    assert "printed by rank 0" in output
    assert "printed by rank 1" not in output
    assert "printed by rank 1" in logs.log(1).read_text()
    assert "collects garbage: True" in output  # as it does not while it imports


SLOW_METRIC = """
import time
from pathlib import Path

import torch


def metric(logits, labels):
    time.sleep(0.5 if Path("{file}").exists() else 0)
    return torch.zeros(len(labels))
"""

PRINTING = """
import gc

import torch.distributed as dist
from torch import nn


class Model(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(3, num_classes)

    def forward(self, images):
        print("printed by rank", dist.get_rank(), "collects garbage:", gc.isenabled(), flush=True)
        return self.layer(images.mean((2, 3)))


def build(num_classes, pace):
    return Model(num_classes)
"""

"""Evaluation beside training finds what the workers find, also after a kill, on this machine and through Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.telemetry.metrics_file import read_metrics
from resnet_dist.training.beside import pending_steps
from tests.distributed.fault_runs import FaultRun, assert_nothing_is_left, assert_same_bits, has_ended

BESIDE = {"every": "20 steps", "beside": True}


def evaluations(run: FaultRun) -> list[dict[str, Any]]:
    """The eval records, in the order of `read_metrics`, without what differs between two ways to evaluate."""
    records = [record for record in read_metrics(run.directory.metrics) if record["kind"] == "eval"]
    return [{key: value for key, value in record.items() if key not in ("time_s", "beside")} for record in records]


def evaluating(run: FaultRun) -> int | None:
    """The process that evaluates; None before it has started."""
    for task in Path(f"/proc/{run.pid()}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a process that has just ended
            for child in (task / "children").read_text().split():
                if b"launcher.local.beside" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return None


def test_after_a_kill_the_next_attempt_evaluates_what_is_due_with_the_same_counts(
    fault_run: Callable[..., FaultRun], undisturbed: FaultRun
) -> None:
    run = fault_run(evaluate=BESIDE, checkpoint={"every": "10 steps", "keep": 1})
    run.start()
    process = run.until(lambda: evaluating(run))
    os.kill(process, signal.SIGSTOP)  # it has just started
    run.wait_for_step(41)
    assert pending_steps(run.directory.pending_evaluations) == (20, 40)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)  # whether or not it had begun to watch its parent, it ends with it
    while not has_ended(process):
        time.sleep(0.01)
    run.start()
    run.end()
    assert_nothing_is_left(run)
    assert not run.directory.pending_evaluations.exists()
    assert evaluations(run) == evaluations(undisturbed)
    beside = [record["step"] for record in read_metrics(run.directory.metrics) if record.get("beside")]
    assert beside == [20, 40]  # the workers do the last one
    assert_same_bits(run, undisturbed)


@pytest.mark.ray
def test_through_ray_an_actor_evaluates_with_the_same_counts(
    fault_run: Callable[..., FaultRun], undisturbed: FaultRun
) -> None:
    run = fault_run(place="ray", workers=1, evaluate=BESIDE)
    run.start()
    run.end()
    assert evaluations(run) == evaluations(undisturbed)
    assert sum("beside" in record for record in read_metrics(run.directory.metrics)) == 2


def test_a_run_that_goes_on_from_memory_evaluates_every_checkpoint_beside_training(
    fault_run: Callable[..., FaultRun], undisturbed: FaultRun
) -> None:
    """Rank 0, which hands checkpoints over, is killed in the step after a checkpoint that is to be evaluated."""
    run = fault_run(evaluate=BESIDE, workers=2, resources={"local_workers": 2})
    run.start()
    run.wait_for_step(21)
    os.kill(run.pid(rank=0), signal.SIGKILL)
    run.end()
    assert_nothing_is_left(run)
    found, expected = evaluations(run), evaluations(undisturbed)
    assert [(one["step"], one["top1"]) for one in found] == [(one["step"], one["top1"]) for one in expected]
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=1e-9)
    assert [name for name, _ in run.failures()] == ["WorkerLost"]
    assert sorted(run.losses()) == sorted(undisturbed.losses())
    assert not run.directory.pending_evaluations.exists()

"""A process that hangs exits and writes its stacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import cast

import pytest

from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.worker.watchdog import waits_for_others

ROOT = Path(__file__).parents[4]
HEAD = """
import sys, threading, time
from pathlib import Path
from launcher.worker.watchdog import Watchdog
from resnet_dist.telemetry.liveness import Liveness
from launcher.run.directory import AttemptLogs
logs, liveness = AttemptLogs(Path(sys.argv[1])), Liveness()
later = AttemptLogs(Path(sys.argv[1]).parent / "attempt-2")
dog = Watchdog(liveness, logs, 0, hang_timeout_s=1.0, next_logs=later, node_id="n7")
def never_returns():
    print("hangs", flush=True)
    time.sleep(60)
"""
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(body: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HEAD + body, str(tmp_path / "attempt-1")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_a_thread_that_hangs_ends_the_process_with_76_and_leaves_its_stack(run: Run, tmp_path: Path) -> None:
    process = run("with dog:\n    liveness.enter('step', 7)\n    never_returns()")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 76, errors
    assert "never_returns" in (tmp_path / "attempt-1/stacks/rank-0.txt").read_text()
    beat = heartbeats.read(AttemptLogs(tmp_path / "attempt-1"))[0]
    assert (beat.phase, beat.step, beat.node_id, beat.hung, beat.ended) == ("step", 7, "n7", True, None)
    assert (tmp_path / "attempt-1/dump").exists()  # the others are asked to write theirs


def test_a_thread_that_makes_progress_is_not_interrupted(run: Run, tmp_path: Path) -> None:
    body = "with dog:\n    for step in range(20):\n        liveness.enter('step', step)\n        time.sleep(0.1)\n"
    process = run(body)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    beat = heartbeats.read(AttemptLogs(tmp_path / "attempt-1"))[0]
    assert (beat.step, beat.ended) == (19, "stopped")


def test_an_error_is_recorded_as_the_end(run: Run, tmp_path: Path) -> None:
    process = run("with dog:\n    raise KeyError(1)")
    process.communicate(timeout=60)
    assert heartbeats.read(AttemptLogs(tmp_path / "attempt-1"))[0].ended == "KeyError"


def test_a_replaced_process_exits(run: Run, tmp_path: Path) -> None:
    process = run("with dog:\n    while True:\n        liveness.beat()\n        time.sleep(0.01)")
    wait_for(lambda: bool(heartbeats.read(AttemptLogs(tmp_path / "attempt-1"))))
    (tmp_path / "attempt-2").mkdir()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_a_hang_ends_the_process_where_the_storage_fails_too(run: Run) -> None:
    process = run("def fails(*_, **__):\n    raise OSError(28, 'No space left on device')\n"
                  "with dog:\n    Path.exists = Path.touch = Path.write_bytes = fails\n"
                  "    liveness.enter('step', 7)\n    never_returns()")  # fmt: skip
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 76, errors


@pytest.mark.parametrize(
    ("file", "calls", "waits"),
    [
        ("resnet_dist/training/evaluate.py", "", True),
        ("resnet_dist/training/checkpointing.py", "", True),
        ("resnet_dist/telemetry/step_totals.py", "torch/functional.py", True),
        ("resnet_dist/engines/zero.py", "", True),
        ("resnet_dist/checkpoint/host_copy.py", "", True),
        ("torch/distributed/distributed_c10d.py", "torch/functional.py", True),
        ("resnet_dist/engines/ddp.py", "my/model.py", False),  # a model may hang by itself
        ("resnet_dist/checkpoint/save.py", "", False),  # a hanging disk is local to this worker
    ],
)
def test_a_thread_that_reads_the_result_of_a_collective_waits_for_others(file: str, calls: str, waits: bool) -> None:
    if file.startswith("resnet_dist"):
        assert (ROOT / file).is_file()  # the watchdog has a list of file names
    frame = None
    for name in [file, calls] if calls else [file]:
        frame = SimpleNamespace(f_code=SimpleNamespace(co_filename=f"/x/{name}"), f_back=frame)
    assert waits_for_others(cast(FrameType, frame)) is waits


def test_stacks_come_on_a_signal_at_any_time(run: Run, tmp_path: Path) -> None:
    process = run("with dog:\n    threading.Thread(target=never_returns, daemon=True).start()\n"
                  "    while True:\n        liveness.beat()\n        time.sleep(0.01)")  # fmt: skip
    wait_for(lambda: bool(heartbeats.read(AttemptLogs(tmp_path / "attempt-1"))))
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n"
    os.kill(process.pid, signal.SIGUSR1)
    stacks = tmp_path / "attempt-1/stacks/rank-0.txt"
    wait_for(lambda: "never_returns" in stacks.read_text())
    assert process.poll() is None
    process.kill()
    process.communicate()


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)

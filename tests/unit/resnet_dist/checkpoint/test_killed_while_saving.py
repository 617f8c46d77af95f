"""A process that is killed while it saves leaves a complete newest checkpoint, at whatever moment it is struck."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_dist.checkpoint.restore import load, newest

KEEP = 2

# Importing torch takes longer than a test should: one process imports it, and forks a saver at each line it reads.
# A line is FOLDER FIRST_STEP STRIKE: the saver saves step after step, and is killed by itself before the disk operation
# number STRIKE (counted by the interpreter's audit events), or by the test when STRIKE is 0.
SAVERS = """
import os, signal, sys
from pathlib import Path
import torch
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.save import save

torch.set_num_threads(1)
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}

def strike_before(number):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event in OPERATIONS:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

for line in sys.stdin:
    folder, step, strike = line.split()
    saver = os.fork()
    if saver == 0:
        if int(strike):
            strike_before(int(strike))
        for step in range(int(step), int(step) + (2 if int(strike) else 10**6)):
            tensors = {"weight": torch.full((50_000,), float(step))}
            save(Path(folder), step, tensors, {"weight": {"momentum": tensors["weight"]}}, {}, Retention(KEEP))
        os._exit(0)
    print(saver, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(saver, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def savers() -> Iterator[Callable[[str], int]]:
    """Send a line to the process that forks savers, or read a number from it with an empty one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SAVERS.replace("KEEP", str(KEEP))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        lines, numbers = process.stdin, process.stdout

        def exchange(line: str) -> int:
            if line:
                lines.write(line + "\n")
                lines.flush()
            return int(numbers.readline())

        yield exchange
        process.stdin.close()


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def check_newest(folder: Path, at_least: int) -> int:
    """The newest checkpoint is good, so is each older one (none half-deleted), and nothing seen before has got lost."""
    checkpoint = newest(folder)
    assert checkpoint is not None
    assert checkpoint.step >= at_least
    assert checkpoint.step == max(steps(folder))
    assert [load(path).step for path in sorted(folder.glob("step-*"))] == steps(folder)
    assert torch.equal(checkpoint.model()["weight"], torch.full((50_000,), float(checkpoint.step)))
    assert torch.equal(checkpoint.optimizer()["weight"]["momentum"], checkpoint.model()["weight"])
    return checkpoint.step


def test_a_kill_before_any_disk_operation_leaves_a_complete_newest_checkpoint(
    tmp_path: Path, savers: Callable[[str], int], caplog: pytest.LogCaptureFixture
) -> None:
    step, strike, status = 0, 0, -signal.SIGKILL
    savers(f"{tmp_path} {step} 1000000")
    assert savers("") == 0
    step = check_newest(tmp_path, at_least=1)
    while status == -signal.SIGKILL:
        strike += 1
        savers(f"{tmp_path} {step + 1} {strike}")
        status = savers("")
        step = check_newest(tmp_path, at_least=step)
    assert status == 0  # struck at every operation of two saves, until there were no more to strike
    assert strike > 30
    assert caplog.messages == []  # no torn checkpoint was ever there to be skipped
    # What the kills left undone, the save that came through has done: older ones deleted, torn ones swept away.
    assert steps(tmp_path) == [step - 1, step]
    assert list(tmp_path.glob(".step-*")) == []


def test_a_kill_at_a_random_moment_leaves_a_complete_newest_checkpoint(
    tmp_path: Path, savers: Callable[[str], int], caplog: pytest.LogCaptureFixture
) -> None:
    step, moments = 0, random.Random(0)
    for _ in range(15):
        saver = savers(f"{tmp_path} {step + 1} 0")
        while max(steps(tmp_path), default=0) <= step:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(saver, signal.SIGKILL)
        assert savers("") == -signal.SIGKILL
        step = check_newest(tmp_path, at_least=step + 1)
    assert caplog.messages == []

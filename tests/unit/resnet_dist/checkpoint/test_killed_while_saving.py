"""A process that is killed while it saves leaves a complete newest checkpoint, at whatever moment it is killed."""

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

# Importing torch takes longer than a test should: one process imports it, and forks a saver for each line it reads.
# A line is FOLDER FIRST_STEP KILL_AT: the saver saves step after step, and kills itself before the disk operation
# number KILL_AT (counted by the interpreter's audit events), or is killed by the test if KILL_AT is 0.
SAVERS = """
import os, signal, sys
from pathlib import Path
import torch
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.retention import Retention, delete_old
from resnet_dist.checkpoint.save import write

torch.set_num_threads(1)
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}

def kill_before(number):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        # Opening a file to read it changes nothing: the kill before the next operation covers it.
        if event in OPERATIONS and not (event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

for line in sys.stdin:
    folder, step, kill_at = line.split()
    saver = os.fork()
    if saver == 0:
        if int(kill_at):
            kill_before(int(kill_at))
        for step in range(int(step), int(step) + (2 if int(kill_at) else 10**6)):
            tensors = {"weight": torch.full((50_000,), float(step))}
            write(Path(folder), CheckpointContent(step, tensors, {"weight": {"momentum": tensors["weight"]}}, {}))
            delete_old(Path(folder), step, Retention(KEEP))
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
    """Check that the newest and all older checkpoints are intact, and that none of those seen before is lost."""
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
    step, kill_at, status = 0, 0, -signal.SIGKILL
    savers(f"{tmp_path} {step} 1000000")
    assert savers("") == 0
    step = check_newest(tmp_path, at_least=1)
    while status == -signal.SIGKILL:
        kill_at += 1
        savers(f"{tmp_path} {step + 1} {kill_at}")
        status = savers("")
        step = check_newest(tmp_path, at_least=step)
    assert status == 0  # killed at every operation of two saves
    assert kill_at > 30
    assert caplog.messages == []  # there never was a torn checkpoint to skip
    # The save that was not killed has deleted older checkpoints and temporary folders.
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

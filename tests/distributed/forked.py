"""Groups of workers for tests that are scripts too: one process imports torch, and every worker is a fork of it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable

AFTER_A_FAILURE_S = 10.0  # for the other workers to end
GONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


def run_script(file: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a test file as a script, with the `resnet_dist` of this process and one thread in every library."""
    environment = {name: value for name, value in os.environ.items() if name not in GONE}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, *options, file, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def run_forked(work: Callable[[int], None], num_workers: int, timeout_s: float) -> list[int | None]:
    """Call `work(rank)` in as many forks of this process; returns their exit codes, -9 for one that SIGKILL has ended.

    A worker that is still there after `timeout_s`, or some time after another one has failed, is killed: None.
    """
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(rank,)) for rank in range(num_workers)]
    for worker in workers:
        worker.start()
    end_by = time.monotonic() + timeout_s
    while any(worker.exitcode is None for worker in workers) and time.monotonic() < end_by:
        if any(worker.exitcode for worker in workers):
            end_by = min(end_by, time.monotonic() + AFTER_A_FAILURE_S)
        time.sleep(0.01)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
        worker.join()
    return codes

"""Evaluation beside training in a child process of the first worker, on this machine.

The parent writes a step a line to the child's standard input; results come back through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from launcher import signals, streams
from launcher.config.schema import RunConfig
from launcher.errors import WorkerLost
from launcher.recovery.portable import portable
from launcher.run.directory import AttemptLogs, RunDirectory
from resnet_dist.training.beside import Unavailable

NICENESS = 10  # where CPUs are scarce, training goes first


class LocalEvaluations:
    """Evaluates in a child process, which is started for the first evaluation, and again if it has ended."""

    def __init__(self, config: RunConfig, run: RunDirectory, logs: AttemptLogs, local_world_size: int) -> None:
        """Raises Unavailable if the workers need GPUs, and this machine has none beside theirs."""
        import torch

        self._run, self._log = run, logs.beside
        self._num_threads, self._device = config.resources.cpus_per_worker, "cpu"
        if config.resources.gpus_per_worker:
            if torch.cuda.device_count() <= local_world_size:
                raise Unavailable(f"this machine has no GPU beside those of its workers ({local_world_size})")
            self._device = f"cuda:{local_world_size}"
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: Connection | None = None

    def start(self, step: int) -> None:
        """Send `step` to the child."""
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            process = self._launch()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{step}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just ended: `ended` finds out how

    def ended(self) -> Mapping[str, Any] | Exception | None:
        """The result of the step that was sent last; None while it is computed."""
        assert self._process is not None
        assert self._answers is not None
        try:
            if self._answers.poll(0):
                result: Mapping[str, Any] | Exception = self._answers.recv()
                return result
        except (EOFError, OSError):
            pass
        code = self._process.poll()
        if code is None:
            return None
        return WorkerLost(os.uname().nodename, 0, f"the evaluating process ended with code {code}: see {self._log}")

    def close(self) -> None:
        """End the child at once."""
        if self._process is not None and self._answers is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # of an order that the process has not read
                    self._process.stdin.close()
            self._answers.close()
            self._process = None

    def _launch(self) -> subprocess.Popen[bytes]:
        receiving, sending = os.pipe()
        job = [str(self._run.path), str(self._num_threads), self._device]
        command = [sys.executable, "-m", "launcher.local.beside", str(sending), str(os.getpid()), *job]
        with self._log.open("ab") as log, signals.blocked():  # a signal to all processes must not end it
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[sending], env=_environment()
            )
        os.close(sending)
        self._answers = Connection(receiving, writable=False)
        return self._process


def _environment() -> dict[str, str]:
    """The variables of this process without those of a process group: the child is no worker."""
    group = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in group}


def main(pipe: int, parent: int, run: Path, num_threads: int, device: str) -> None:
    """Evaluate the checkpoint of each step that comes, and send the result or the error."""
    from launcher.local.child import die_with

    streams.protect()
    die_with(parent)
    for name in ("SIGTERM", "SIGUSR2", "SIGHUP", "SIGINT"):  # the parent ends this process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.nice(NICENESS)

    import torch

    from launcher.inference.beside import evaluation_of

    with Connection(pipe, readable=False) as answers:
        for line in sys.stdin:
            try:
                answers.send(
                    evaluation_of(RunDirectory.at(run), int(line), num_threads=num_threads, device=torch.device(device))
                )
            except Exception as error:
                answers.send(portable(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])

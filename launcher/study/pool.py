"""Worker processes on this machine. A process that has ended is replaced; its run has failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection

from launcher import signals
from launcher.exit_codes import ExitCode
from launcher.signals import StopSignals
from launcher.study.rounds import Job
from launcher.study.training import Answer, Ended, Order

POLL_S = 0.5
END_S = 5.0  # for an idle process to exit

MakeOrder = Callable[[Job], Order]


class Process:
    """A worker process, and the job that it carries out."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.deterministic = False
        jobs, self._jobs = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-m", "launcher.study.worker", str(jobs), str(answers), str(os.getpid())]
        with signals.blocked():  # until the child handles them
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[jobs, answers])
        os.close(jobs)
        os.close(answers)
        self._orders = Connection(self._jobs, readable=False)
        self.answers = Connection(self._answers, writable=False)

    def start(self, job: Job, order: Order) -> None:
        """Send it a job."""
        self.job, self.deterministic = job, order.config.deterministic
        with contextlib.suppress(OSError):  # it has ended: its answers do, too
            self._orders.send(order)

    def fits(self, order: Order) -> bool:
        """Whether it may carry out an order. What `deterministic` sets in torch stays set."""
        return self.job is None and (order.config.deterministic or not self.deterministic)

    def receive(self) -> Answer | None:
        """The next answer; None if the process has ended."""
        try:
            answer: Answer = self.answers.recv()
        except (EOFError, OSError):
            return None
        return answer

    def how_it_ended(self) -> Ended:
        """Why it ended, for the run that it was training."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        if code == ExitCode.UNAVAILABLE:
            return Ended(code, "another process has taken over this run")
        if code >= 0:
            return Ended(ExitCode.HARDWARE, f"its process exited with code {code}")
        hint = ": possibly out of memory (dmesg)" if -code == signal.SIGKILL else ""
        return Ended(ExitCode.HARDWARE, f"its process was killed by {signal.Signals(-code).name}{hint}")

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._orders.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.answers.close()


class Pool:
    """Up to `size` worker processes, which stay alive until the pool is closed."""

    def __init__(self, size: int, stop: StopSignals) -> None:
        self._size, self._stop = size, stop
        self._processes: list[Process] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.job is not None:  # after an error in this process
                process.signal(signal.SIGKILL)
            process.close()

    def run(self, jobs: Sequence[Job], make_order: MakeOrder) -> Iterator[tuple[Job, Answer | None]]:
        """Carry out jobs in their order; yields each answer, and None twice a second.

        After a signal no further job begins, and the running ones save and stop.
        """
        waiting = list(jobs)

        def forward(number: int) -> None:
            for process in list(self._processes):
                process.signal(number)

        with self._stop.listen(on_stop=forward, on_end=lambda: forward(signal.SIGKILL)):
            while True:
                while waiting and not self._stop.stopped and self._num_running() < self._size:
                    job = waiting.pop(0)
                    order = make_order(job)
                    self._idle(order).start(job, order)
                    if (number := self._stop.received) is not None:  # just now
                        forward(number)
                running = [process for process in self._processes if process.job is not None]
                if not running:
                    return
                ready = connection.wait([process.answers for process in running], POLL_S)
                yield running[0].job, None  # type: ignore[misc]
                for process in running:
                    if process.answers in ready:
                        yield self._answer(process)

    def _num_running(self) -> int:
        return sum(process.job is not None for process in self._processes)

    def _idle(self, order: Order) -> Process:
        for process in self._processes:
            if process.fits(order):
                return process
        for process in self._processes:
            if process.job is None and len(self._processes) >= self._size:
                self._processes.remove(process)
                process.close()
                break
        self._processes.append(Process())
        return self._processes[-1]

    def _answer(self, process: Process) -> tuple[Job, Answer]:
        job, answer = process.job, process.receive()
        assert job is not None
        if answer is None:
            answer = process.how_it_ended()
            self._processes.remove(process)
            process.close()
        if isinstance(answer, Ended):
            process.job = None
        return job, answer

"""A run in a child process, started again after a failure by the same retry policy as under Ray.

The parent does not import torch, so it starts fast and torch cannot crash it. It passes signals on to the child; exit
codes and errors are those of the child. If the parent is killed, the child ends too.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import IO

from launcher import signals
from launcher.config.schema import Faults
from launcher.console import Progress
from launcher.errors import ConfigError, UsageError, WorkerHung, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.local.child import Job, Message
from launcher.local.to_parent import Told
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.recovery.handler import FailureHandler, wait
from launcher.recovery.history import retry_policy
from launcher.recovery.notify import Notifier
from launcher.recovery.session import Session
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.lease import LeaseLost
from launcher.run.progress import completed_steps, newest_step, read_beats

END_S = 10.0  # for a process to exit after its last message: threads of libraries may hang then


def run_supervised(session: Session, mode: ResumeMode) -> tuple[ExitCode, AttemptResult]:
    """Train in a child process, and again after failures; returns the exit code and the result, or raises."""
    run, host = session.run, socket.gethostname()
    policy = dataclasses.replace(retry_policy(session.config), min_workers=1, max_workers=1)
    handler = FailureHandler(session, policy)
    child: Child | None = None

    def forward(number: int) -> None:
        if child is not None:
            child.signal(number)

    stop = session.stop
    with stop.listen(on_stop=forward, on_end=lambda: forward(signal.SIGKILL)):
        while True:
            began = time.time()
            session.check_lease()
            if session.stop.stopped:  # before the first child, or between two
                return stop.exit_code, AttemptResult(newest_step(run), finished=False, trained=child is not None)
            session.progress.stage("starting a process and importing PyTorch")
            child = Child.start(Job(session.config, mode, session.claim, handler.num_micro_batches), session.progress)
            if stop.stopped:  # just now
                child.signal(stop.received or signal.SIGTERM)
            ended = child.run(run, session.config.faults, session.notifier)
            if isinstance(ended, tuple):
                code, result = ended
                return stop.exit_code if stop.stopped and code is not ExitCode.OK else code, result
            if isinstance(ended, LeaseLost):
                raise ended  # the run belongs to another process now: nothing is recorded
            attempt = child.attempt
            if attempt is None:
                if stop.stopped:  # it ended before it could train
                    return stop.exit_code, AttemptResult(newest_step(run), finished=False, trained=False)
                if isinstance(ended, UsageError | ConfigError):
                    raise ended  # refused before it began: nothing is recorded
                attempt = AttemptSpec(run.begin_attempt({"place": "local", "workers": 1}))
            attempt = dataclasses.replace(attempt, began=began)
            decision = handler.handle(ended, attempt, {host: 1}, stopping=stop.stopped)
            mode = "auto"
            wait(decision.wait_s, stop)


def _show_output(output: IO[bytes], progress: Progress) -> None:
    """Show the lines that a child prints, such as those of the user's code."""
    for line in output:
        progress.print(line.decode(errors="backslashreplace").rstrip("\r\n"))


class Child:
    """A child process for one attempt; `answers` yields its messages."""

    def __init__(self, process: subprocess.Popen[bytes], answers: Connection, progress: Progress) -> None:
        self._progress = progress
        self.attempt: AttemptSpec | None = None  # once it has begun
        self._process, self._answers = process, answers
        self._last: Message | None = None  # its result or its error

    @classmethod
    def start(cls, job: Job, progress: Progress) -> Child:
        """Start a process and send it `job`. Beside a live line, what it prints comes through this process."""
        content = pickle.dumps(job)
        receiving, sending = os.pipe()
        command = [sys.executable, "-m", "launcher.local.child", str(sending), str(os.getpid())]
        with signals.blocked():  # until the child handles them
            stdout, stderr = (subprocess.PIPE, subprocess.STDOUT) if progress.is_live else (None, None)
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, pass_fds=[sending])
        os.close(sending)
        assert process.stdin is not None
        try:
            process.stdin.write(content)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended: `run` finds out how
        if process.stdout is not None:
            threading.Thread(target=_show_output, args=(process.stdout, progress), daemon=True).start()
        return cls(process, Connection(receiving, writable=False), progress)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def run(self, run: RunDirectory, faults: Faults, notifier: Notifier) -> tuple[ExitCode, AttemptResult] | Exception:
        """Wait for the end; returns the exit code and the result, or the error of the attempt."""
        monitor = heartbeats.Monitor(faults.hang_timeout_s)
        hang = None
        try:
            hang = self._watch(run, faults, notifier, monitor)
            if hang is None:
                self._wait()
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()
        if isinstance(self._last, tuple):
            return ExitCode(self._last[0]), self._last[1]
        if isinstance(self._last, Exception):
            return self._last
        if hang is None and self.attempt is not None:
            hang = monitor.check(read_beats(run, self.attempt.number), time.monotonic())
        return hang or self._how_it_ended()

    def _watch(
        self, run: RunDirectory, faults: Faults, notifier: Notifier, monitor: heartbeats.Monitor
    ) -> WorkerHung | None:
        """Receive messages until the last one, or until the process has ended; returns a hang if there is one."""
        poll_s = heartbeats.interval_s(faults.hang_timeout_s)
        begin_s = max(faults.start_timeout_s, heartbeats.LONG * faults.hang_timeout_s)
        begin_by, end_by = time.monotonic() + begin_s, float("inf")
        beats: list[Heartbeat] = []
        while self._receive(poll_s):
            # A heartbeat that cannot be read counts as an unchanged one.
            beats = beats if self.attempt is None else read_beats(run, self.attempt.number) or beats
            if beats:
                notifier.see_step(beats[0].step)
                self._progress.see(completed_steps(beats[0]), beats[0].phase)
                hang = monitor.check(beats, time.monotonic())
                if hang is None:
                    continue
                if beats[0].hung:  # the process can still act, and ends itself
                    end_by = min(end_by, time.monotonic() + END_S + heartbeats.LONG * poll_s)
                    if time.monotonic() < end_by:
                        continue
                return hang
            if time.monotonic() >= begin_by:
                return WorkerHung(socket.gethostname(), 0, "start", 0, f"no heartbeat for {begin_s:g} s")
        return None

    def _receive(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for a message; False after the last one."""
        if not self._answers.poll(timeout_s):
            if self._process.poll() is None:
                return True
            if not self._answers.poll(0):  # its last message may have come between the two calls
                return False
        try:
            message: Message = self._answers.recv()
        except (EOFError, OSError):
            return False
        if isinstance(message, Told):
            getattr(self._progress, message.method)(message.content)
            return True
        if isinstance(message, AttemptSpec):
            self.attempt = message
            return True
        self._last = message
        return False

    def _wait(self) -> None:
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _how_it_ended(self) -> WorkerLost:
        code = self._process.returncode
        if code >= 0:
            return WorkerLost(socket.gethostname(), 0, f"the process exited with code {code}")
        name = signal.Signals(-code).name
        hint = ": possibly out of memory (dmesg)" if -code == signal.SIGKILL else ""
        return WorkerLost(socket.gethostname(), 0, f"the process was killed by {name}{hint}")

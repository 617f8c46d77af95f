"""A run on this machine that survives its own process: a parent that restarts it, by the policy that Ray's driver has.

The parent imports no torch, so it starts at once and cannot crash with it. Signals go on to the child; exit codes and
errors come back as if there were no second process. Where the parent is killed, the child ends with it.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from launcher.config.schema import Faults, RunConfig
from launcher.console import Progress
from launcher.errors import ConfigError, LauncherError, UsageError, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.recovery.handler import Recovery, wait
from launcher.recovery.history import hung, policy_of
from launcher.recovery.notify import Notifier
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat
from launcher.run.lease import Claim, Lease, LeaseLost
from launcher.run.progress import newest_step, read_beats
from launcher.signals import StopSignals

END_S = 10.0  # for a process that has told its outcome to end: threads of libraries may hang then


def run_supervised(
    config: RunConfig,
    run: RunDirectory,
    mode: str,
    progress: Progress,
    notifier: Notifier,
    held: Lease | None = None,
) -> tuple[ExitCode, dict[str, Any]]:
    """Train in a process of its own, again after a failure; returns the exit code and the outcome, or raises.

    `held` is the run's lease: looked at before each attempt, as this process may have been suspended.
    """
    host = socket.gethostname()
    policy = dataclasses.replace(policy_of(config), least=1, most=1)
    recovery = Recovery(config, run, progress, notifier, policy)
    child: _Child | None = None

    def forward(number: int) -> None:
        if child is not None:
            child.signal(number)

    def end() -> NoReturn:
        forward(signal.SIGKILL)
        os._exit(ExitCode.INTERRUPTED)

    with StopSignals(on_stop=forward, on_again=end) as signals:
        while True:
            began = time.time()
            if held is not None:
                held.check()
            child = _Child(config, mode, recovery, None if held is None else held.claim)
            if signals.stopped:  # between two children, or just now
                child.signal(signals.received or signal.SIGTERM)
            error = child.run(run, config.faults, notifier)
            if error is None:
                stopped = signals.stopped and child.code is not ExitCode.OK
                return signals.exit_code if stopped else child.code, child.outcome
            if isinstance(error, LeaseLost):
                raise error  # whoever has taken the run over has the last word on it
            if signals.stopped and child.attempt is None:  # ended by the signal before it could save: nothing was done
                return signals.exit_code, {"step": newest_step(run), "finished": False}
            if child.attempt is None and isinstance(error, UsageError | ConfigError):
                raise error  # it was refused before it began: the run that is there stays as it is
            attempt = run.begin_attempt({"place": "local", "workers": 1}) if child.attempt is None else child.attempt
            decision = recovery.failed(error, attempt, child.first_step, began, {host: 1}, stopping=signals.stopped)
            mode = "auto"
            wait(decision.wait_s, signals)


class _Child:
    """One attempt in a process of its own."""

    def __init__(self, config: RunConfig, mode: str, recovery: Recovery, claim: Claim | None) -> None:
        self.attempt: int | None = None
        self.first_step = 0
        self.code, self.outcome = ExitCode.INTERNAL, dict[str, Any]()
        self._error: Exception | None = None
        self._told = False
        job = {"storage": Path(config.storage), "config": config, "mode": mode, "claim": claim}
        job |= {"skips": recovery.history.skips, "num_micro_batches": recovery.num_micro_batches}
        receiving, sending = os.pipe()
        command = [sys.executable, "-m", "launcher.local.child", str(sending), str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[sending])
        os.close(sending)
        self._answers = Connection(receiving, writable=False)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickle.dumps(job))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended: `run` finds out how

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def run(self, run: RunDirectory, faults: Faults, notifier: Notifier) -> Exception | None:
        """Wait for the end; returns what went wrong, or None."""
        monitor = heartbeats.Monitor(faults.hang_timeout_s)
        poll_s = heartbeats.interval_s(faults.hang_timeout_s)
        verdict = None
        begin_s = max(faults.start_timeout_s, heartbeats.LONG * faults.hang_timeout_s)
        begin_by, end_by = time.monotonic() + begin_s, float("inf")
        beats: list[Beat] = []
        try:
            while self._receive(poll_s):
                # One that cannot be read just now counts as one that has not changed.
                beats = beats if self.attempt is None else read_beats(run, self.attempt) or beats
                if beats:
                    notifier.see_step(beats[0].step)
                    verdict = monitor.look(beats, time.monotonic())
                    if verdict is None:
                        continue
                    if beats[0].hung:  # a process that can still act ends itself
                        end_by = min(end_by, time.monotonic() + END_S + heartbeats.LONG * poll_s)
                        if time.monotonic() < end_by:
                            continue
                elif time.monotonic() < begin_by:
                    continue
                else:
                    problem = f"no sign of life in {begin_s:g} s"
                    verdict = heartbeats.Verdict(0, socket.gethostname(), None, "start", 0, problem)
                self._process.kill()
                break
            self._wait()
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()
        if self._told:
            return self._error
        if verdict is None and self.attempt is not None:
            verdict = monitor.look(read_beats(run, self.attempt), time.monotonic())
        return hung(verdict) if verdict is not None else self._how_it_ended()

    def _receive(self, timeout_s: float) -> bool:
        """Take what the child says within `timeout_s`; False once it will say no more."""
        if not self._answers.poll(timeout_s):
            if self._process.poll() is None:
                return True
            if not self._answers.poll(0):  # its last word may have come between the two
                return False
        try:
            kind, *rest = self._answers.recv()
        except (EOFError, OSError):
            return False
        if kind == "begun":
            self.attempt, self.first_step = rest
            return True
        self._told = True
        if kind == "outcome":
            self.code, self.outcome = ExitCode(rest[0]), rest[1]
        else:
            self._error = rest[0]
        return False

    def _wait(self) -> None:
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _how_it_ended(self) -> LauncherError:
        code = self._process.returncode
        if code >= 0:
            return WorkerLost(socket.gethostname(), 0, f"the process ended with exit code {code}")
        name = signal.Signals(-code).name
        hint = ": out of memory, perhaps (dmesg)" if -code == signal.SIGKILL else ""
        return WorkerLost(socket.gethostname(), 0, f"the process was ended by {name}{hint}")

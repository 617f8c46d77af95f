"""Worker processes of this machine: idle ones that have imported PyTorch and the project, before they have a job.

A process is started with `WorkerProcess.start`, imports at once, and waits. The first processes of a run are started
while its config is still checked, and one even before it is read (`launcher.local.early`); later ones replace workers
that fail (`faults.warm_spares`). An idle process has initialised nothing on a GPU. It ends when its parent ends, or
closes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

import cluster
import resnet_dist
from launcher.config.schema import Faults
from launcher.console import Progress
from launcher.errors import WorkerLost
from launcher.local import early
from launcher.local.early import Started
from launcher.local.messages import Failed, Message, Order, Ready

# Memory of an idle process that it shares with no other: 290 MB with PyTorch for the CPU (Pss_Anon in
# /proc/PID/smaps_rollup); assumption: twice that with the libraries of CUDA.
SPARE_BYTES = 600 * 2**20
LEAST_LEFT_BYTES = 2 * 2**30  # assumption: what training may still need once it has made its first step
MOST_FAILED_STARTS = 3  # of spares that ended by themselves: then there will be no more of them
EXIT_S = 10.0  # for a process to exit after its last message: threads of libraries may hang then
_MEMORY = Path("/proc/meminfo")
_CGROUP, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class WorkerProcess:
    """A process of `launcher.local.child`, which takes one job after the other."""

    def __init__(self, process: subprocess.Popen[bytes], link: Connection, began: float | None = None) -> None:
        self.process, self.link, self._began = process, link, time.time() if began is None else began
        self.is_ready = False  # whether it has imported everything
        self._waiting: list[Message] = []  # those that were received and not taken yet
        self.end_descriptor = _end_descriptor(process)  # readable once the process has ended; None: not available

    @classmethod
    def start(cls, progress: Progress, *, same_path: bool = False) -> WorkerProcess:
        """Start a process, as `early.start` does. Beside a live line of `progress`, its output comes through this one.

        `same_path`: it looks for modules where this process does, which may be a notebook.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        started = early.start(piped=progress.is_live, environment=environment if same_path else None)
        return cls.of(started, progress)

    @classmethod
    def of(cls, started: Started, progress: Progress) -> WorkerProcess:
        """A process that was started; `progress` shows what it prints through this process."""
        if started.process.stdout is not None:
            threading.Thread(target=_show_output, args=(started.process.stdout, progress), daemon=True).start()
        return cls(*started)

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    @property
    def has_current_code(self) -> bool:
        """Whether the project's code has not changed on disk since the process was started."""
        packages = [Path(__file__).parents[1], *map(Path, resnet_dist.__path__), *map(Path, cluster.__path__)]
        return all(file.stat().st_mtime <= self._began for package in packages for file in package.rglob("*.py"))

    def send(self, order: Order) -> None:
        """Send an order. A process that has ended takes nothing: its end is found out elsewhere."""
        with contextlib.suppress(OSError):
            self.link.send(order)

    def look(self) -> bool:
        """Receive what has come; False if nothing more will come."""
        try:
            while self.link.poll(0):
                message = self.link.recv()
                if isinstance(message, Ready):
                    self.is_ready = True
                else:
                    self._waiting.append(message)
        except (EOFError, OSError):
            return False
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """The messages that have come since the last call, and whether more may come."""
        more = self.look()
        messages, self._waiting = self._waiting, []
        return messages, more

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.runs:
            self.process.send_signal(number)

    def finish(self, seconds: float) -> None:
        """Let the process end by itself, for at most `seconds`."""
        self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.end()

    def end(self) -> None:
        """End the process at once."""
        if self.runs:
            self.process.kill()
        self.process.wait()
        self.link.close()
        if self.end_descriptor is not None:
            os.close(self.end_descriptor)
            self.end_descriptor = None

    def how_it_ended(self, rank: int) -> WorkerLost:
        """The error of a worker whose process has ended, or closed its connection, without a message."""
        host = socket.gethostname()
        try:
            code = self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return WorkerLost(host, rank, f"the process closed its connection and did not exit within {EXIT_S:g} s")
        if code >= 0:
            return WorkerLost(host, rank, f"the process exited with code {code}")
        name = signal.Signals(-code).name
        hint = ": possibly out of memory (dmesg)" if -code == signal.SIGKILL else ""
        return WorkerLost(host, rank, f"the process was killed by {name}{hint}")

    def why_it_ended(self) -> str:
        """Why a process without a job has ended: the error that it has sent, or else how it ended."""
        self.look()
        errors = [message.error for message in self._waiting if isinstance(message, Failed)]
        return str(errors[-1]) if errors else self.how_it_ended(0).problem


class Spares:
    """Idle processes of this process, of which `first` was started before; those that are left end with `close`."""

    def __init__(self, progress: Progress, *, same_path: bool = False, first: Started | None = None) -> None:
        self._progress, self._same_path = progress, same_path
        self._idle = [] if first is None else [WorkerProcess.of(first, progress)]
        self._num_failed = 0

    def start(self, num: int = 1) -> None:
        """Start processes until `num` are idle. For `WorkerProcess.start`, call it in the main thread."""
        self._remove_ended()
        while len(self._idle) < num and self._num_failed < MOST_FAILED_STARTS:
            self._idle.append(self._started())

    def take(self) -> WorkerProcess:
        """An idle process, the most ready one; without one, a process that is started now."""
        self._remove_ended()
        for spare in [one for one in self._idle if not one.has_current_code]:  # the others would have other code
            self._idle.remove(spare)
            spare.end()
        for spare in self._idle:
            spare.look()
        chosen = next((one for one in self._idle if one.is_ready), next(iter(self._idle), None))
        if chosen is None:
            return self._started()
        self._idle.remove(chosen)
        return chosen

    def close(self) -> None:
        """End all idle processes at once."""
        while self._idle:
            self._idle.pop().end()

    def kill(self) -> None:
        """As `close`, from a signal handler: without waiting."""
        for spare in list(self._idle):
            spare.signal(signal.SIGKILL)

    def _started(self) -> WorkerProcess:
        return WorkerProcess.start(self._progress, same_path=self._same_path)

    def _remove_ended(self) -> None:
        for spare in [one for one in self._idle if not one.runs]:
            self._num_failed += 1
            last = f"; after {MOST_FAILED_STARTS} of them no other one is started"
            last = last if self._num_failed == MOST_FAILED_STARTS else ""
            self._progress.print(f"an idle process ended: {spare.why_it_ended()}{last}")
            spare.end()
            self._idle.remove(spare)


def num_spares(faults: Faults) -> tuple[int, str]:
    """How many idle processes to keep, and why there are none although there could be, for a person.

    `faults.warm_spares` decides, or else the memory that this machine, or the cgroup of this process, has left.
    """
    if faults.warm_spares is not None:
        return faults.warm_spares, ""
    available = available_bytes()
    needed = SPARE_BYTES + LEAST_LEFT_BYTES
    if available is not None and available < needed:
        return 0, (
            f"no idle process is kept for a fast restart: {available / 2**30:.1f} GiB of memory are left, "
            f"{needed / 2**30:.1f} GiB are required; faults.warm_spares=1 keeps one anyway"
        )
    return 1, ""


def available_bytes() -> int | None:
    """Memory that this process can still use, by the limits of the machine and of its cgroups; None: unknown."""
    found = [bytes_ for bytes_ in (_left_of_machine(), _left_of_cgroup()) if bytes_ is not None]
    return min(found, default=None)


def _left_of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _left_of_cgroup() -> int | None:
    """What the limits of the cgroups (version 2) of this process leave, from its own one up to the root."""
    try:
        own = _OWN_CGROUP.read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return None
    left: list[int] = []
    folder = _CGROUP / own
    for one in (folder, *folder.parents):
        if not one.is_relative_to(_CGROUP):
            break
        with contextlib.suppress(OSError, ValueError):
            most, used = (one / "memory.max").read_text().strip(), int((one / "memory.current").read_text())
            files = dict(line.split() for line in (one / "memory.stat").read_text().splitlines())
            if most != "max":
                left.append(int(most) - used + int(files.get("inactive_file", 0)))
    return min(left, default=None)


def _end_descriptor(process: subprocess.Popen[bytes]) -> int | None:
    """A descriptor that is readable once the process has ended, even if its own children keep its pipes open."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or before 5.3
        return None


def _show_output(output: IO[bytes], progress: Progress) -> None:
    """Show the lines that a process prints, such as those of the user's code."""
    for line in output:
        progress.print(line.decode(errors="backslashreplace").rstrip("\r\n"))

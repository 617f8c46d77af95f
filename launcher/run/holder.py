"""The holder of a lease: a process, on a machine, for a submission."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from launcher.run.record_types import utc_now

_MAX_PID = 2**31


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease."""

    uuid: str
    host: str
    pid: int
    process_start: str  # in the system's unit: distinguishes the process from a later one with its pid
    boot_id: str  # of the machine; empty if the system has none
    pid_namespace: str  # pids are comparable only within it; empty if the system has none
    since: str  # ISO 8601, UTC
    submission: str = ""  # the submission that started the process; empty if a person did
    command_began: str = ""  # when its command began: ISO 8601, UTC; empty in leases of version 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.pid < _MAX_PID or not self.process_start:  # kill(2): 0 and below mean many processes
            raise ValueError(f"there is no process {self.pid}")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this_process(cls, submission: str = "", command_began: str = "") -> Holder:
        """This process, as a holder from now on."""
        pid = os.getpid()
        process = (uuid.uuid4().hex, socket.gethostname(), pid, process_start(pid), *_machine())
        return cls(*process, utc_now(), submission, command_began)

    def precedes(self, other: Holder) -> bool:
        """Whether `other` is the next start of the same submission."""
        return self.submission != "" and self.submission == other.submission

    def is_here(self) -> bool:
        """Whether its pid can be looked up by this process: same machine, same container."""
        return (self.host, self.boot_id, self.pid_namespace) == (socket.gethostname(), *_machine())

    def is_alive(self) -> bool:
        """Whether its process exists. Valid only if `is_here`."""
        started = process_start(self.pid)
        if started:
            return started == self.process_start
        try:
            os.kill(self.pid, 0)  # signal 0 only checks
        except PermissionError:
            return True  # a process of another user, whose start time is hidden (hidepid)
        except ProcessLookupError:
            pass
        return False  # it does not exist, or is a zombie

    def signal(self, number: int) -> bool:
        """Send a signal to its process; False if there is no such process of this user. Valid only if `is_here`."""
        if not self.is_alive() or _owner(self.pid) not in (os.geteuid(), None):
            return False
        os.kill(self.pid, number)
        return True


def _owner(pid: int) -> int | None:
    """The user id of a process; None without /proc, where kill(2) checks it."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _machine() -> tuple[str, str]:
    """Boot id and pid namespace of this machine; empty if the system has none."""
    boot_id = namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return boot_id, namespace


def process_start(pid: int) -> str:
    """The start time of a process (on Linux, in kernel ticks since boot); empty if it does not exist or is a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        command = ["ps", "-o", "lstart=", "-p", str(pid)]  # macOS has no /proc
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except ProcessLookupError:  # it ended while its file was open
        return ""
    # proc(5): the name in parentheses may contain anything; after it the state is field 3, the start time field 22
    state, *rest = status.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]

"""Who is at work in a run directory: a process, on a machine, for a submission."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from launcher.run.directory import utc_now


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    uuid: str
    host: str
    pid: int
    process_start: str  # in the system's own unit: tells the process from a later one with its number
    boot_id: str  # of the machine, since it was last started; empty where the system has none
    pid_namespace: str  # process numbers mean the same only within it; empty where the system has none
    since: str  # ISO 8601, UTC
    submission: str = ""  # that a place has started it for, and starts again; empty where a person did

    @classmethod
    def this_process(cls, submission: str = "") -> Holder:
        """This process, from now on."""
        pid = os.getpid()
        since = utc_now()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _start_of(pid), *_machine(), since, submission)

    def precedes(self, other: Holder) -> bool:
        """Whether `other` is the next start of the same submission."""
        return self.submission != "" and self.submission == other.submission

    def is_here(self) -> bool:
        """Whether its process number can be looked up in this process's own machine and container."""
        return (self.host, self.boot_id, self.pid_namespace) == (socket.gethostname(), *_machine())

    def is_alive(self) -> bool:
        """Whether its process is there; to be asked only where `is_here`."""
        try:
            os.kill(self.pid, 0)  # signal 0 only asks
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # another user's: never taken from somebody else
        return _start_of(self.pid) == self.process_start


def _machine() -> tuple[str, str]:
    """Boot id and process namespace of this machine; empty where the system has none."""
    boot_id = namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return boot_id, namespace


def _start_of(pid: int) -> str:
    """When a process was started, in the system's own unit; empty where it is gone, or a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        command = ["ps", "-o", "lstart=", "-p", str(pid)]  # macOS has no /proc
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except ProcessLookupError:  # it ended while its file was open
        return ""
    # proc(5): the name in parentheses may hold anything; after it the state is field 3, the start time field 22
    state, *rest = status.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]

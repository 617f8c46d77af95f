"""Runs sbatch, squeue, scancel and kubectl without a shell and with a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from launcher.errors import ClusterUnavailable

TIMEOUT_S = 60.0  # assumption: a controller that does not answer in this time is unreachable


@dataclass(frozen=True)
class Answer:
    """The result of a program."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The last line of standard error, else of standard output, else the exit code."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def is_installed(program: str) -> bool:
    """Whether `program` is on the PATH."""
    return shutil.which(program) is not None


def call(program: str, *arguments: str, given: str | None = None, timeout_s: float = TIMEOUT_S) -> Answer:
    """Run `program` with the text `given` on its standard input. Its arguments must not contain secrets.

    Raises ClusterUnavailable if it is not installed or does not finish in time.
    """
    path = shutil.which(program)
    if path is None:
        raise ClusterUnavailable(
            f"{program} is not on this machine's PATH. Run this on a machine that has it (a login node), or install it"
        )
    try:
        done = subprocess.run(
            [path, *arguments],
            input="" if given is None else given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterUnavailable(f"{program} did not answer within {timeout_s:g} s") from None
    return Answer(done.returncode, done.stdout, done.stderr)


def stream(program: str, *arguments: str) -> int:
    """Run `program` with this process's standard output until it ends or is interrupted. Returns its exit code.

    Raises ClusterUnavailable if it is not installed.
    """
    path = shutil.which(program)
    if path is None:
        raise ClusterUnavailable(f"{program} is not on this machine's PATH")
    with subprocess.Popen([path, *arguments], stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return 0

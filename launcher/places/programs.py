"""Runs sbatch, squeue, scancel, kubectl and others: without a shell, with a time limit, in a chosen environment.

A scheduler that does not answer is asked again, with growing waits, until it does or a limit is reached. No answer
means nothing: neither that a job is gone, nor that a request was not carried out.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.errors import ClusterUnavailable
from resnet_dist.input_files import printable

log = logging.getLogger(__name__)
T = TypeVar("T")
Lines = Generator[str, None, None]  # to close it ends what prints them

TIMEOUT_S = 60.0  # assumption: a controller that does not answer one request in this time will not
LIMIT_S = 30.0  # assumption: longer than most restarts of a controller, and a person still waits for it
SUBMIT_LIMIT_S = 120.0  # for `submit`: a failure costs more there than a wait
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 15.0
_MAX_LINES = 20  # of a program's output in a message

# No connection was made: the request has not arrived.
_NOT_SENT = re.compile(
    r"connect failure|connection refused|server \S+ was refused|could not establish|no such host|no route to host"
    r"|network is unreachable|dial tcp|munge|standby mode",
    re.IGNORECASE,
)
# There was no answer, or one that says "later"; the request may have arrived. Messages of SLURM 22.05 (tried: the first
# three; read: slurm_errno.c) and of kubectl (tried: refused connections; read: client-go, net/http, etcd).
_NO_ANSWER = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (timed out|reset|lost)|zero bytes were"
    r"|transport endpoint is not connected|protocol authentication error|temporarily unable"
    r"|unable to connect to the server|i/o timeout|handshake timeout|deadline exceeded|client\.timeout|broken pipe"
    r"|\bEOF\b|currently unable to handle|service unavailable|too many requests|etcdserver|server \((server)?timeout\)",
    re.IGNORECASE,
)
# Asking again does not help: a wrong certificate; no cluster at all (kubectl's default address).
_FINAL = re.compile(r"x509|certificate|localhost:8080", re.IGNORECASE)

# A job is what its script says. These variables of the shell, or of an outer job, would change the options of these
# programs, what squeue prints, or the GPUs that the job uses, because sbatch passes the environment on.
_SLURM = (
    "SBATCH_", "SLURM_", "SRUN_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SACCT_", "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)  # fmt: skip
_NAMES_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
_KUBECTL = ("KUBECTL_", "KUBERC")
# kubectl translates its messages, and from 1.34 on reads default options from ~/.kube/kuberc.
_OF_KUBECTL = {"LC_ALL": "C", "KUBECTL_KUBERC": "false", "KUBERC": "off"}

_LOG_LINE = re.compile(r"[EWIF]\d{4} \d\d:\d\d:\d\d")  # of a library in kubectl
_PREFIX = re.compile(
    r"^((sbatch|squeue|scancel|scontrol|sacct): |slurm_\w+ (?=error: ))?((error|fatal): )?", re.IGNORECASE
)


class PlaceUnavailable(ClusterUnavailable):
    """A scheduler cannot be asked, or refuses: one line, with what to do, and below it what its program printed."""

    def __init__(self, line: str, printed: str = "", allowed: str = "") -> None:
        below = [f"    {one}" for one in _lines(printed)[-_MAX_LINES:]]
        super().__init__("\n".join([line + _advice(allowed), *below]))
        self.line, self.printed, self.allowed = line, printed, allowed

    def but(self, outcome: str) -> PlaceUnavailable:
        """The same error, with what it means for the user's request."""
        return PlaceUnavailable(f"{self.line}; {outcome}", self.printed, self.allowed)

    def in_one_line(self) -> str:
        """The line, with the last of what the program printed."""
        return self.line + "".join(f": {one}" for one in _lines(self.printed)[-1:]) + _advice(self.allowed)


class NotAnswered(PlaceUnavailable):
    """A scheduler did not answer. `maybe_arrived`: it may have received the request, and may carry it out."""

    def __init__(
        self, who: str, printed: str = "", allowed: str = "", *, asked_s: float = 0.0, maybe_arrived: bool = True
    ) -> None:
        for_how_long = f" (asked for {asked_s:.0f} s)" if asked_s >= 1 else ""
        super().__init__(f"{who} cannot be reached{for_how_long}", printed, allowed)
        self.who, self.asked_s, self.maybe_arrived = who, asked_s, maybe_arrived

    def of(self, who: str, asked_s: float, *, maybe_arrived: bool) -> NotAnswered:
        """The same error, with what the caller knows."""
        return NotAnswered(who, self.printed, self.allowed, asked_s=asked_s, maybe_arrived=maybe_arrived)


@dataclass(frozen=True)
class Answer:
    """The result of a program."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it reports: standard error, else standard output, else the exit code; without control characters."""
        return _lines(self.err) or _lines(self.out) or [f"exit code {self.code}"]

    @property
    def text(self) -> str:
        """The lines in one text."""
        return "\n".join(self.lines)


def is_installed(program: str) -> bool:
    """Whether `program` is on the PATH."""
    return shutil.which(program) is not None


def call(
    program: str, *arguments: str, given: str | None = None, timeout_s: float = TIMEOUT_S, limit_s: float | None = None
) -> Answer:
    """Run `program` with the text `given` on its standard input, again until its scheduler answers.

    Its arguments must not contain secrets. Raises PlaceUnavailable if the program is not installed, NotAnswered after
    `limit_s` (default LIMIT_S).
    """
    return until_answered(lambda: call_once(program, *arguments, given=given, timeout_s=timeout_s), limit_s)


def call_once(program: str, *arguments: str, given: str | None = None, timeout_s: float = TIMEOUT_S) -> Answer:
    """Run `program` once. Raises PlaceUnavailable if it is not installed, NotAnswered without an answer."""
    command = [_found(program), *arguments]
    try:
        done = subprocess.run(
            command,
            input="" if given is None else given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(program),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotAnswered(_who(program), f"no answer within {timeout_s:g} s") from None
    if done.returncode != 0 and _FINAL.search(done.stderr) is None:
        not_sent = _NOT_SENT.search(done.stderr) is not None
        if not_sent or _NO_ANSWER.search(done.stderr):
            raise NotAnswered(_who(program), done.stderr, maybe_arrived=not not_sent)
    return Answer(done.returncode, done.stdout, done.stderr)


def until_answered(request: Callable[[], T], limit_s: float | None = None) -> T:
    """Call `request` until it does not raise NotAnswered; after `limit_s` (default LIMIT_S) the error says how long."""
    limit_s = LIMIT_S if limit_s is None else limit_s
    began, wait_s, maybe_arrived = time.monotonic(), FIRST_WAIT_S, False
    while True:
        try:
            return request()
        except NotAnswered as error:
            asked_s = time.monotonic() - began
            maybe_arrived = maybe_arrived or error.maybe_arrived
            if asked_s >= limit_s:
                raise error.of(error.who, asked_s, maybe_arrived=maybe_arrived) from None
            if wait_s == FIRST_WAIT_S:
                log.warning("%s; asking again for up to %g s", error.in_one_line(), limit_s)
        time.sleep(min(wait_s, limit_s - asked_s))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def stream(program: str, *arguments: str) -> int:
    """Run `program` with this process's standard output until it ends or is interrupted. Returns its exit code.

    Raises PlaceUnavailable if it is not installed.
    """
    command = [_found(program), *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment(program)) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return 0


def lines(program: str, *arguments: str) -> Lines:
    """The lines that `program` prints, also as errors, as they come. A caller that stops reading ends the program.

    Raises PlaceUnavailable if it is not installed, or ends with an exit code other than 0.
    """
    command = [_found(program), *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    last = ""
    with subprocess.Popen(command, **pipes, text=True, errors="replace", env=environment(program)) as process:
        try:
            for line in process.stdout or ():
                last = line.strip() or last
                yield line
        finally:
            process.terminate()
    if process.returncode > 0:
        raise PlaceUnavailable(f"{program} ended with exit code {process.returncode}", last)


def environment(program: str) -> dict[str, str]:
    """The environment of `program`: this process's without those that `dropped` names."""
    without = dropped(program)
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | (_OF_KUBECTL if program == "kubectl" else {})


def dropped(program: str) -> list[str]:
    """The variables of this process that `program` does not get, because they change what it does; sorted."""
    prefixes = _KUBECTL if program == "kubectl" else _SLURM
    return sorted(name for name in os.environ if name.startswith(prefixes) and name not in _NAMES_THE_CLUSTER)


def _who(program: str) -> str:
    return f"{program}: {'the cluster' if program == 'kubectl' else 'SLURM'}"


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise PlaceUnavailable(
            f"{program} is not on this machine's PATH", allowed=f"a machine that has {program} (a login node)"
        )
    return path


def _advice(allowed: str) -> str:
    return f". Allowed: {allowed}" if allowed else ""


def _lines(printed: str) -> list[str]:
    """What a program printed, each line once, without its name; log lines of a library only if there are no others."""
    lines = [_PREFIX.sub("", line.strip()) for line in printable(printed).splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line))
    return [line for line in lines if _LOG_LINE.match(line) is None] or lines

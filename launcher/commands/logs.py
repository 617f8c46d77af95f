"""`launcher logs RUN|CONFIG [--rank K] [--attempt N] [--follow]`: the log of a worker.

`--follow` continues with the next attempt when it starts, and ends when the run does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.commands import target
from launcher.commands.target import Target
from launcher.errors import UsageError
from launcher.ray_backend import jobs as ray_jobs
from launcher.run import status as run_state
from launcher.run.directory import RunDirectory
from launcher.run.status import LIVE
from launcher.run.submissions import JobStatus
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.input_files import open_regular

POLL_S = 0.5
CHUNK_BYTES = 1_000_000  # a log may be larger than the memory
ASK_EVERY_S = 30.0  # between two requests to a scheduler: squeue is expensive on a busy controller


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--rank K] [--attempt N] [--follow]"""
    verb = verbs.add_parser("logs", help="the log of a worker")
    target.add_arguments(verb)
    verb.add_argument("--rank", metavar="K", type=int, default=0, help="of this worker (%(default)s)")
    verb.add_argument("--attempt", metavar="N", type=int, help="of this attempt (default: the newest)")
    verb.add_argument("--follow", action="store_true", help="print new lines until the run ends")
    verb.set_defaults(run=_logs)


def follow(
    run: RunDirectory,
    rank: int,
    attempt: int | None,
    is_live: Callable[[], bool],
    write: Callable[[str], object],
    poll_s: float = POLL_S,
) -> None:
    """Write a worker's log as it grows, until the run ends; without `attempt` from the newest attempt on."""
    number = attempt if attempt is not None else _newest(run)
    offset, last_look = 0, False
    while True:
        if number:
            offset = _copy(run.logs(number).log(rank), offset, write, to_end=last_look)
        newest = _newest(run)
        if attempt is None and newest > number:
            if number:
                _copy(run.logs(number).log(rank), offset, write, to_end=True)
                write(f"--- attempt {newest}\n")
            number, offset, last_look = newest, 0, False
            continue
        if last_look:
            return
        if not is_live():
            last_look = True  # for lines written since the last look
            continue
        time.sleep(poll_s)


def _logs(given: argparse.Namespace) -> int:
    found = target.find(given)
    if not found.is_here:
        return _from_elsewhere(given, found)
    run, rank = found.run, given.rank
    number = given.attempt or _newest(run)
    if given.follow:
        _explain_nothing(run, found, number)
        follow(run, rank, given.attempt, _Watch(found), _write)
        return 0
    if not number:
        _explain_nothing(run, found, number)
        return 0
    _check(run, rank, number)
    _copy(run.logs(number).log(rank), 0, _write, to_end=True)
    return 0


class _Watch:
    """Whether a run is live, or may be: its scheduler is asked from time to time only, and until it answers."""

    def __init__(self, found: Target) -> None:
        self._found, self._asked, self._told = found, float("-inf"), False
        self._job: JobStatus | None = None

    def __call__(self) -> bool:
        if time.monotonic() - self._asked > ASK_EVERY_S:
            self._job, self._asked = self._found.job_status(), time.monotonic()
        job = self._job
        status = run_state.read_status(self._found.run, job, stale_lease_wait_s=0.0)
        if status.state != "unknown" or job is None or job.state != "unreachable":
            return status.state in LIVE
        if not self._told:
            print(f"following the log although the run may have ended: {job.reason}", file=sys.stderr)
        self._told = True
        return True


def _from_elsewhere(given: argparse.Namespace, found: Target) -> int:
    """The log of a run whose storage is not mounted on this machine."""
    arguments = ["logs", str(found.run.path), "--rank", str(given.rank)]
    arguments += ["--attempt", str(given.attempt)] if given.attempt else []
    if found.profile is not None:
        found.read([*arguments, *(["--follow"] if given.follow else [])], live=True)
        return 0
    assert found.submission is not None  # a Ray job
    print("the run directory is not on this machine; this is the output of the driver", file=sys.stderr)
    print(ray_jobs.driver_log(found.submission.id, None, found.address), end="")
    return 0


def _explain_nothing(run: RunDirectory, found: Target, number: int) -> None:
    """If there is no attempt yet, print why, and the output of its SLURM job."""
    if number:
        return
    status = run_state.read_status(run, found.job_status())
    print(f"no attempt yet: {status.state}{f', {status.reason}' if status.reason else ''}", file=sys.stderr)
    printed = sorted(run.all_logs.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
    if printed:
        _copy(printed[-1], 0, _write, to_end=True)


def _check(run: RunDirectory, rank: int, number: int) -> None:
    if run.logs(number).log(rank).exists():
        return
    ranks = run.logs(number).ranks()
    if ranks:
        raise UsageError(f"attempt {number} has no log of rank {rank}. Allowed: {_ranges(ranks)}")
    numbers = [attempt.number for attempt in run.attempts()]
    if number not in numbers:
        raise UsageError(f"there is no attempt {number}. Allowed: {_ranges(numbers)}")
    raise UsageError(f"attempt {number} has no logs: its workers have not started. See: launcher status {run.path}")


def _ranges(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _newest(run: RunDirectory) -> int:
    return max((attempt.number for attempt in run.attempts()), default=0)


def _copy(path: Path, offset: int, write: Callable[[str], object], *, to_end: bool = False) -> int:
    """Write the lines of a file from `offset` on, with `to_end` an incomplete last line too; returns the new offset."""
    with storage_errors(path):
        try:
            file = open_regular(path)
        except FileNotFoundError:
            return offset
        with file:
            file.seek(offset)
            while content := file.read(CHUNK_BYTES):
                whole = content[: content.rfind(b"\n") + 1] or (content if len(content) == CHUNK_BYTES else b"")
                if not whole and to_end:
                    whole = content
                if not whole:
                    break
                write(whole.decode(errors="replace"))
                offset += len(whole)
                file.seek(offset)
    return offset


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

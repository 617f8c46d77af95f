"""Signs of life on shared storage: each worker writes its own small file, and whoever watches reads them all.

    logs/attempt-N/heartbeat/rank-K     one JSON object, rewritten every few seconds as long as the process runs
    logs/attempt-N/dump                 its existence asks every worker for the stacks of its threads
    logs/attempt-N/end                  and this one's, to end after that

A process that was stopped or lost leaves a file that does not change; a training thread that hangs leaves one whose
`age_s` grows. Watchers compare what they read with their own clock only: the clocks of two hosts need not agree.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from launcher.run.directory import AttemptLogs

LONG_PHASES = ("start", "save")  # as in resnet_dist.telemetry.liveness, which needs torch
LONG = 3  # times the timeout: a start or a save is one call that cannot beat
SIZE = 1024  # bytes of a heartbeat, padded, so that a rewrite is one write
NAME = re.compile(r"rank-([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself."""

    rank: int
    host: str
    pid: int
    tick: int  # grows with every writing
    phase: str
    step: int
    age_s: float  # since the last sign of progress
    waiting: bool = False  # for other workers, in a collective
    node_id: str | None = None  # Ray's name of the host
    started: int = 0  # the process's start in the kernel's ticks: a number that is used again is another process's
    ended: str | None = None  # how the training function ended: finished, stopped, or an error's class
    hung: bool = False  # its own watchdog has ended it


@dataclass(frozen=True)
class Verdict:
    """The worker that the others wait for; `rank` is None where all of them wait."""

    rank: int | None
    host: str
    node_id: str | None
    phase: str
    step: int
    problem: str


def interval_s(hang_timeout_s: float) -> float:
    """Seconds between two heartbeats: once a second where a hang must be noticed within a minute, else less often."""
    return min(max(hang_timeout_s / 60, min(1.0, hang_timeout_s / 10)), 10.0)


def write(logs: AttemptLogs, beat: Beat) -> None:
    """Rewrite a worker's heartbeat. Raises OSError."""
    content = json.dumps(asdict(beat)).encode().ljust(SIZE - 1) + b"\n"
    # Opened anew each time: a network file system shows other hosts what was written when the file is closed.
    descriptor = os.open(logs.heartbeat(beat.rank), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)


def read(logs: AttemptLogs) -> dict[int, Beat]:
    """{rank: heartbeat} of an attempt. One that is just being written is left out."""
    beats = {}
    try:
        paths = list(logs.heartbeats.iterdir())
    except OSError:
        return {}
    for path in paths:
        if NAME.fullmatch(path.name):
            try:
                beat = Beat(**json.loads(path.read_bytes()))
            except (OSError, ValueError, TypeError):
                continue
            beats[beat.rank] = beat
    return beats


class Monitor:
    """Watches an attempt's heartbeats from outside. `look` is called at least once an `interval_s`."""

    def __init__(self, hang_timeout_s: float) -> None:
        self._timeout_s = hang_timeout_s
        self._most_s = 2 * interval_s(hang_timeout_s) + 1
        self._watched_s, self._last = 0.0, 0.0
        self._since: dict[int, tuple[int, float]] = {}  # rank -> the newest tick, and when it was first seen

    def look(self, beats: Iterable[Beat], now: float) -> Verdict | None:
        """The worker that stands in the way of all, once that is certain; `now` is in seconds of any one clock."""
        # What passes while this process was stopped itself (Ctrl-Z, a suspended machine) is nobody's fault.
        self._watched_s += min(now - self._last, self._most_s)
        self._last = now
        running = [beat for beat in beats if beat.ended is None]
        for beat in running:
            if self._since.get(beat.rank, (-1, 0.0))[0] != beat.tick:
                self._since[beat.rank] = (beat.tick, self._watched_s)
        unchanged_s = {rank: self._watched_s - seen for rank, (_, seen) in self._since.items()}
        return judge(running, self._timeout_s, unchanged_s)


def judge(running: list[Beat], timeout_s: float, unchanged_s: dict[int, float]) -> Verdict | None:
    """Who hangs, of workers that have not ended; `unchanged_s` is for how long each one's heartbeat has not changed.

    A worker that waits for others in a collective is never the one, unless all of them wait.
    """
    accused = [beat for beat in running if beat.hung]
    if accused:
        return _verdict(_first(accused), f"no sign of progress for {timeout_s:g} s")
    frozen = [beat for beat in running if unchanged_s.get(beat.rank, 0.0) >= timeout_s]
    if frozen:
        return _verdict(_first(frozen), f"the process does not run: its heartbeat stopped {timeout_s:g} s ago")
    stalled = [beat for beat in running if beat.age_s >= _allowed_s(beat, timeout_s)]
    at_work = [beat for beat in stalled if not beat.waiting]
    if at_work:
        return _verdict(_first(at_work), f"no sign of progress for {timeout_s:g} s")
    if running and len(stalled) == len(running):
        return _together(_first(running), timeout_s)
    return None


def _allowed_s(beat: Beat, timeout_s: float) -> float:
    return timeout_s * (LONG if beat.phase in LONG_PHASES else 1)


def _first(beats: list[Beat]) -> Beat:
    """The one that is furthest behind."""
    return min(beats, key=lambda beat: (beat.step, -beat.age_s))


def _verdict(beat: Beat, problem: str) -> Verdict:
    return Verdict(beat.rank, beat.host, beat.node_id, beat.phase, beat.step, problem)


def _together(beat: Beat, timeout_s: float) -> Verdict:
    problem = f"all wait in a collective for {timeout_s:g} s; none of them is missing: the network, or NCCL"
    return Verdict(None, "", None, beat.phase, beat.step, problem)

"""Heartbeats on shared storage: each worker rewrites a small file, and watchers find the worker that hangs.

    logs/attempt-N/heartbeat/rank-K     one JSON object, rewritten every few seconds while the process runs
    logs/attempt-N/dump                 asks every stalled worker for the stacks of its threads
    logs/attempt-N/end                  asks every stalled worker to exit after that

The file of a stopped or lost process does not change; the `age_s` of a training thread that hangs grows. Watchers
measure with their own clock only, so clocks may differ between hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from launcher.errors import WorkerHung
from launcher.run.directory import AttemptLogs
from resnet_dist.input_files import read_json, record_of

LONG_PHASES = ("start", "save")  # as in resnet_dist.telemetry.liveness, which needs torch
LONG = 3  # times the timeout: a start or a save is one call that cannot report progress
SIZE = 1024  # bytes of a heartbeat, padded, so that a rewrite is one write
NAME = re.compile(r"rank-([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The state of one worker."""

    rank: int
    host: str
    pid: int
    tick: int  # grows with every write
    phase: str
    step: int
    age_s: float  # since the last progress
    waiting: bool = False  # for other workers, in a collective
    node_id: str | None = None  # Ray's id of the node
    started: int = 0  # start time of the process in kernel ticks: distinguishes it from a later process with its pid
    ended: str | None = None  # how the training function ended: finished, stopped, or the error class
    hung: bool = False  # its own watchdog has detected a hang


def interval_s(hang_timeout_s: float) -> float:
    """Seconds between two heartbeats: at most 1 for timeouts up to a minute, at most 10 for longer ones."""
    return min(max(hang_timeout_s / 60, min(1.0, hang_timeout_s / 10)), 10.0)


def write(logs: AttemptLogs, beat: Heartbeat) -> None:
    """Rewrite the heartbeat of a worker. Raises OSError."""
    content = json.dumps(asdict(beat)).encode().ljust(SIZE - 1) + b"\n"
    # Opened each time: a network file system shows a write to other hosts when the file is closed.
    descriptor = os.open(logs.heartbeat(beat.rank), os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)


def read(logs: AttemptLogs) -> dict[int, Heartbeat]:
    """{rank: heartbeat} of an attempt, by rank. Files that are being written or cannot be read are left out."""
    beats = {}
    try:
        paths = list(logs.heartbeats.iterdir())
    except OSError:
        return {}
    for path in paths:
        if NAME.fullmatch(path.name):
            with contextlib.suppress(OSError, ValueError):
                beat = record_of(Heartbeat, read_json(path))
                if beat is not None:
                    beats[beat.rank] = beat
    return dict(sorted(beats.items()))


class Monitor:
    """Watches the heartbeats of an attempt from another process."""

    def __init__(self, hang_timeout_s: float) -> None:
        self._timeout_s = hang_timeout_s
        self._max_interval_s = 2 * interval_s(hang_timeout_s) + 1
        self._watched_s, self._last = 0.0, 0.0
        self._since: dict[int, tuple[int, float]] = {}  # rank -> the newest tick, and when it was first seen

    def check(self, beats: Iterable[Heartbeat], now: float) -> WorkerHung | None:
        """The hang, if there is one. Call at least once every `interval_s`; `now` is in seconds of any one clock."""
        # Time in which this process was suspended itself (Ctrl-Z, a suspended machine) does not count.
        self._watched_s += min(now - self._last, self._max_interval_s)
        self._last = now
        running = [beat for beat in beats if beat.ended is None]
        for beat in running:
            if self._since.get(beat.rank, (-1, 0.0))[0] != beat.tick:
                self._since[beat.rank] = (beat.tick, self._watched_s)
        unchanged_s = {rank: self._watched_s - seen for rank, (_, seen) in self._since.items()}
        return find_hang(running, self._timeout_s, unchanged_s)


def find_hang(running: list[Heartbeat], timeout_s: float, unchanged_s: dict[int, float]) -> WorkerHung | None:
    """The hang among workers that have not ended, as the error that ends the attempt; None if there is none.

    `unchanged_s` maps ranks to the time since their heartbeat changed. A worker that waits for others in a collective
    is reported only if all of them wait.
    """
    no_progress = f"no progress for {timeout_s:g} s"
    if self_reported := [beat for beat in running if beat.hung]:
        return _hung(self_reported, no_progress)
    if frozen := [beat for beat in running if unchanged_s.get(beat.rank, 0.0) >= timeout_s]:
        return _hung(frozen, f"the process does not run: its heartbeat stopped {timeout_s:g} s ago")
    stalled = [beat for beat in running if beat.age_s >= timeout_s * (LONG if beat.phase in LONG_PHASES else 1)]
    if not_waiting := [beat for beat in stalled if not beat.waiting]:
        return _hung(not_waiting, no_progress)
    if running and len(stalled) == len(running):
        first = _furthest_behind(running)
        problem = f"all wait in a collective for {timeout_s:g} s and none is missing: check the network and NCCL"
        return WorkerHung("", None, first.phase, first.step, problem)
    return None


def _hung(beats: list[Heartbeat], problem: str) -> WorkerHung:
    beat = _furthest_behind(beats)
    return WorkerHung(beat.host, beat.rank, beat.phase, beat.step, problem, beat.node_id)


def _furthest_behind(beats: list[Heartbeat]) -> Heartbeat:
    return min(beats, key=lambda beat: (beat.step, -beat.age_s))

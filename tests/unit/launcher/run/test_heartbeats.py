"""Heartbeats: written, read, and used to find the worker that hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WorkerHung
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.run.heartbeats import Heartbeat, Monitor, find_hang

TIMEOUT_S = 10.0


def beat(rank: int, **more: Any) -> Heartbeat:
    values: dict[str, Any] = {"tick": 1, "phase": "step", "step": 7, "age_s": 0.0, "node_id": f"n{rank}"}
    return Heartbeat(rank=rank, host=f"host-{rank}", pid=100 + rank, **{**values, **more})


def blamed(hang: WorkerHung | None) -> object:
    return None if hang is None else hang.rank if hang.rank is not None else "all"


WAITS = {"age_s": 12.0, "waiting": True}


@pytest.mark.parametrize(
    ("beats", "unchanged_s", "rank"),
    [
        ([beat(0), beat(1)], {}, None),
        ([beat(0, **WAITS), beat(1, age_s=9.0)], {}, None),
        ([beat(0, **WAITS), beat(1, age_s=11.0)], {}, 1),
        ([beat(0, **WAITS), beat(1)], {1: 11.0}, 1),
        ([beat(0, **WAITS), beat(1, **WAITS)], {}, "all"),
        ([beat(0, **WAITS), beat(1, phase="save", age_s=20.0)], {}, None),
        ([beat(0, **WAITS), beat(1, phase="save", age_s=31.0)], {}, 1),
        ([beat(0, phase="start", age_s=29.0), beat(1, phase="start", age_s=29.0)], {}, None),
        ([beat(0, **WAITS), beat(1, hung=True), beat(2, age_s=11.0)], {}, 1),
        ([beat(0, age_s=11.0, step=8), beat(1, age_s=11.0, step=7)], {}, 1),
        ([], {}, None),
    ],
    ids=[
        "all make progress",
        "one is slow, but within its time",
        "one makes no progress",
        "one process is stopped",
        "all wait",
        "one saves, the others wait for it",
        "one saves for too long",
        "all start",
        "one reports itself",
        "the one that is furthest behind",
        "no worker has started",
    ],
)
def test_the_worker_that_hangs_is_found(beats: list[Heartbeat], unchanged_s: dict[int, float], rank: object) -> None:
    assert blamed(find_hang(beats, TIMEOUT_S, unchanged_s)) == rank


def test_a_hang_names_the_worker_its_node_and_its_phase() -> None:
    hang = find_hang([beat(0, **WAITS), beat(1, age_s=11.0)], TIMEOUT_S, {})
    assert hang is not None
    assert (hang.host, hang.rank, hang.node_id, hang.phase, hang.step) == ("host-1", 1, "n1", "step", 7)
    assert str(hang) == "worker 1 on host-1 at step 7 (step): no progress for 10 s"


def test_a_stopped_process_is_found_by_its_unchanged_heartbeat() -> None:
    monitor = Monitor(TIMEOUT_S)
    for second in range(10):
        assert monitor.check([beat(0, tick=second), beat(1, tick=5)], now=100.0 + second) is None
    hang = monitor.check([beat(0, tick=10), beat(1, tick=5)], now=110.0)
    assert blamed(hang) == 1
    assert hang is not None
    assert "does not run" in hang.problem


def test_a_worker_that_has_ended_is_not_blamed() -> None:
    monitor = Monitor(TIMEOUT_S)
    for second in range(30):
        assert monitor.check([beat(0, tick=second), beat(1, ended="finished")], now=float(second)) is None


def test_no_worker_is_blamed_when_the_monitor_was_suspended_itself() -> None:
    monitor = Monitor(TIMEOUT_S)
    assert monitor.check([beat(0)], now=1.0) is None
    assert monitor.check([beat(0)], now=10_000.0) is None


def test_heartbeats_are_read_back(tmp_path: Path) -> None:
    AttemptLogs(tmp_path).heartbeats.mkdir()
    for one in (beat(0, step=123_456, phase="evaluate"), beat(1), beat(0, step=3)):
        heartbeats.write(AttemptLogs(tmp_path), one)
    AttemptLogs(tmp_path).heartbeat(2).write_bytes(b'{"rank": 2, "ho')
    assert heartbeats.read(AttemptLogs(tmp_path)) == {0: beat(0, step=3), 1: beat(1)}


def test_an_attempt_that_has_not_begun_has_no_heartbeats(tmp_path: Path) -> None:
    assert heartbeats.read(AttemptLogs(tmp_path)) == {}


def test_heartbeats_come_often_enough_for_the_timeout() -> None:
    assert [heartbeats.interval_s(timeout_s) for timeout_s in (1, 6, 60, 120, 600, 6000)] == [0.1, 0.6, 1, 2, 10, 10]

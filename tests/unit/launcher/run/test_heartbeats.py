"""Who stands in the way, by the signs of life of all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.run.heartbeats import Beat, Monitor, Verdict, judge

TIMEOUT_S = 10.0


def beat(rank: int, **more: Any) -> Beat:
    values: dict[str, Any] = {"tick": 1, "phase": "step", "step": 7, "age_s": 0.0, "node_id": f"n{rank}"}
    return Beat(rank=rank, host=f"host-{rank}", pid=100 + rank, **{**values, **more})


def accused(verdict: Verdict | None) -> object:
    return None if verdict is None else verdict.rank if verdict.rank is not None else "all"


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
        "all at work",
        "one is slow, but within its time",
        "one makes no progress",
        "one process is stopped",
        "all wait",
        "one saves, the others wait for it",
        "one saves for too long",
        "all start",
        "one has accused itself",
        "the one that is further behind",
        "nobody is there yet",
    ],
)
def test_the_worker_that_the_others_wait_for(beats: list[Beat], unchanged_s: dict[int, float], rank: object) -> None:
    assert accused(judge(beats, TIMEOUT_S, unchanged_s)) == rank


def test_a_verdict_names_the_worker_its_node_and_what_it_was_doing() -> None:
    verdict = judge([beat(0, **WAITS), beat(1, age_s=11.0)], TIMEOUT_S, {})
    assert verdict == Verdict(1, "host-1", "n1", "step", 7, "no sign of progress for 10 s")


def test_a_process_that_was_stopped_is_found_by_its_heartbeat_that_does_not_change() -> None:
    monitor = Monitor(TIMEOUT_S)
    for second in range(10):
        assert monitor.look([beat(0, tick=second), beat(1, tick=5)], now=100.0 + second) is None
    verdict = monitor.look([beat(0, tick=10), beat(1, tick=5)], now=110.0)
    assert accused(verdict) == 1
    assert verdict is not None
    assert "does not run" in verdict.problem


def test_a_worker_that_has_ended_is_not_missed() -> None:
    monitor = Monitor(TIMEOUT_S)
    for second in range(30):
        assert monitor.look([beat(0, tick=second), beat(1, ended="finished")], now=float(second)) is None


def test_nobody_is_accused_when_the_watcher_was_stopped_itself() -> None:
    monitor = Monitor(TIMEOUT_S)
    assert monitor.look([beat(0)], now=1.0) is None
    assert monitor.look([beat(0)], now=10_000.0) is None


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    AttemptLogs(tmp_path).heartbeats.mkdir()
    for one in (beat(0, step=123_456, phase="evaluate"), beat(1), beat(0, step=3)):
        heartbeats.write(AttemptLogs(tmp_path), one)
    AttemptLogs(tmp_path).heartbeat(2).write_bytes(b'{"rank": 2, "ho')
    assert heartbeats.read(AttemptLogs(tmp_path)) == {0: beat(0, step=3), 1: beat(1)}


def test_an_attempt_that_has_not_begun_has_no_heartbeats(tmp_path: Path) -> None:
    assert heartbeats.read(AttemptLogs(tmp_path)) == {}


def test_heartbeats_come_often_enough_for_the_timeout() -> None:
    assert [heartbeats.interval_s(timeout_s) for timeout_s in (1, 6, 60, 120, 600, 6000)] == [0.1, 0.6, 1, 2, 10, 10]

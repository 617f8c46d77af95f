"""The full-screen view, with keys and sizes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from textual.pilot import Pilot

from launcher.watch.app import Canvas, WatchApp
from launcher.watch.lines import plain
from launcher.watch.snapshot import Snapshot, Worker
from launcher.watch.sources import Timed

RUN = Snapshot(
    run="/runs/a",
    name="digits",
    state="running",
    ranks=[0, 2],
    log=[f"line {number}" for number in range(100)],
    workers=[Worker(rank=rank, host="n", phase="step", step=1, beat_s=0.0, progress_s=0.0) for rank in range(99)],
)


class Fixed:
    """A source with one snapshot, and the log of the rank that is asked for."""

    close_s = 10.0
    wait_s = 0.05

    def snapshots(self, rank: Callable[[], int]) -> Generator[Timed, None, None]:
        while True:
            yield dataclasses.replace(RUN, rank=rank()), self.wait_s


def watch(check: Callable[[WatchApp, Pilot[Any]], Coroutine[Any, Any, None]], num_runs: int = 1, **size: Any) -> None:
    async def run() -> None:
        app = WatchApp([Fixed()] * num_runs, ["digits"] * num_runs)
        async with app.run_test(**size) as pilot:
            await check(app, pilot)
        app.close()

    asyncio.run(run())


def shown(app: WatchApp) -> str:
    return "\n".join(plain(row) for row in app.query_one(Canvas).rows)


def test_keys() -> None:
    async def check(app: WatchApp, pilot: Pilot[Any]) -> None:
        assert "digits  running" in shown(app)
        for keys, part in (
            ("2", "where time goes"), ("3", "workers: 99 in step"), ("4", "log of rank 0"), ("1", "training loss"),
            ("tab", "where time goes"), ("shift+tab", "training loss"),
            ("s", "s smooth strong"), ("s", "s smooth none"),
            ("x", "x axis epoch"), ("x", "x axis time"), ("question_mark", "quit; the run goes on"),
            ("question_mark", "training loss"), ("r", "r rank 2"), ("R", "r rank 0"),
        ):  # fmt: skip
            await pilot.press(keys)
            assert part in shown(app), keys
        await pilot.press("up", "up")
        assert "line 97" in shown(app)
        assert "line 98" not in shown(app)
        await pilot.press("3", "down")
        assert app.view.scroll == 1
        await pilot.press("q")
        assert not app.is_running

    watch(check)


def test_sizes() -> None:
    async def check(app: WatchApp, pilot: Pilot[Any]) -> None:
        for width, height in ((40, 15), (120, 40), (20, 4), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            assert len(app.query_one(Canvas).rows) == height
            assert max(len(row) for row in shown(app).splitlines()) <= width
        assert "B ╍╍" in shown(app)

    watch(check, num_runs=2, size=(80, 24))


def test_the_log_of_another_rank_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fixed, "wait_s", 60.0)

    async def check(app: WatchApp, pilot: Pilot[Any]) -> None:
        await pilot.press("r")
        for _ in range(100):
            if "log of rank 2" in shown(app):
                return
            await pilot.pause(0.05)
        raise AssertionError(shown(app))

    watch(check)

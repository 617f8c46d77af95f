"""Where snapshots come from: this machine, or a command in a cluster."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator

from launcher.errors import ClusterUnavailable
from launcher.run.directory import RunDirectory
from launcher.watch.reader import Reader
from launcher.watch.snapshot import Snapshot
from launcher.watch.sources import AGAIN_S, POLL_S, Elsewhere, Here, Poller, Timed

KNOWN = Snapshot(run="/runs/a", name="a", state="running", job="ray job 7")
FOUND = Snapshot(run="/runs/a", name="a", state="running", step=7)


def test_a_run_here_is_read_every_second(small_run: RunDirectory) -> None:
    found = list(itertools.islice(Here(Reader(small_run)).snapshots(lambda: 0), 2))
    assert [one.name for one, _ in found] == ["small", "small"]
    assert all(wait_s >= POLL_S for _, wait_s in found)


def test_a_run_elsewhere_is_a_stream_of_snapshots() -> None:
    asked: list[int] = []

    def lines(rank: int) -> Generator[str, None, None]:
        asked.append(rank)
        yield "a line of the cluster\n"
        yield FOUND.to_json() + "\n"

    source = Elsewhere(lambda: (KNOWN, True), lines)
    found = list(itertools.islice(source.snapshots(lambda: 3), 4))
    assert [one.step for one, _ in found] == [None, 7, 7, 7]
    assert {one.job for one, _ in found} == {"ray job 7"}
    assert found[2] == (
        Snapshot(**{**vars(found[1][0]), "reason": "the cluster printed: a line of the cluster"}),
        AGAIN_S,
    )
    assert asked == [3]


def test_another_rank_begins_another_stream() -> None:
    ranks = iter([0, 0, 1, 1, 1, 1, 1, 1])
    asked, closed = [], []

    def lines(rank: int) -> Generator[str, None, None]:
        asked.append(rank)
        try:
            while True:
                yield FOUND.to_json()
        finally:
            closed.append(rank)

    list(itertools.islice(Elsewhere(lambda: (KNOWN, True), lines).snapshots(lambda: next(ranks)), 6))
    assert asked[:2] == [0, 1]
    assert closed[0] == 0


def test_a_job_that_waits_is_not_read() -> None:
    def lines(rank: int) -> Generator[str, None, None]:
        raise AssertionError("read")
        yield ""

    found = list(itertools.islice(Elsewhere(lambda: (KNOWN, False), lines).snapshots(lambda: 0), 2))
    assert found == [(KNOWN, 0.0), (KNOWN, AGAIN_S)]


def test_an_unreachable_cluster_is_a_reason_beside_what_is_known() -> None:
    def lines(rank: int) -> Generator[str, None, None]:
        yield FOUND.to_json()
        raise ClusterUnavailable("kubectl: connection refused")

    found = list(itertools.islice(Elsewhere(lambda: (KNOWN, True), lines).snapshots(lambda: 0), 3))
    assert (found[2][0].step, found[2][0].reason) == (7, "kubectl: connection refused")


def test_a_poller_passes_snapshots_on_until_it_is_stopped(small_run: RunDirectory) -> None:
    got, twice = [], threading.Event()

    def publish(found: Snapshot) -> None:
        got.append(found)
        if len(got) == 2:
            twice.set()

    poller = Poller(Here(Reader(small_run)), KNOWN, lambda: 0, publish)
    poller.start()
    assert poller.has_begun.wait(10)
    poller.hurry()
    assert twice.wait(10)
    poller.stop()
    poller.join(10)
    assert not poller.is_alive()


def test_an_error_that_nobody_expects_is_the_reason() -> None:
    class Broken:
        close_s = 0.0

        def snapshots(self, rank: Callable[[], int]) -> Generator[Timed, None, None]:
            yield FOUND, 0.0
            raise ZeroDivisionError("division\x1b[2J by zero")

    got: list[Snapshot] = []
    poller = Poller(Broken(), KNOWN, lambda: 0, got.append)
    poller.start()
    poller.join(10)
    assert [(one.name, one.step, one.state) for one in got] == [("a", 7, "running"), ("a", 7, "unknown")]
    assert got[-1].reason == "it is read no more, after ZeroDivisionError: division by zero"

"""Work of rank 0 for all workers; the broadcast is replaced. tests/distributed/test_long_start.py has several."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch.distributed as dist

from resnet_dist import rank_zero
from resnet_dist.errors import DataError
from resnet_dist.rank_zero import run_long_on_rank_0, run_on_rank_0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What rank 0 broadcasts; a later call, as rank 1, receives it."""
    sent: list[bytes] = []

    def broadcast(objects: list[Any], src: int) -> None:
        assert src == 0
        if sent:
            objects[:] = pickle.loads(sent[0])
        else:
            sent.append(pickle.dumps(objects))

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    return sent


def never() -> None:
    raise AssertionError("only rank 0 works")


def test_every_worker_gets_the_result_of_rank_0(sent: list[bytes]) -> None:
    assert run_on_rank_0(lambda: 7, 0, 2) == 7
    assert run_on_rank_0(never, 1, 2) == 7  # type: ignore[func-returns-value]


def test_every_worker_raises_the_error_of_rank_0(sent: list[bytes]) -> None:
    def fail() -> None:
        raise DataError("folder", "is empty")

    for rank, work in ((0, fail), (1, never)):
        with pytest.raises(DataError, match="folder: is empty"):
            run_on_rank_0(work, rank, 2)


def test_another_error_is_not_broadcast_unless_it_is_asked_for(sent: list[bytes]) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_on_rank_0(fail, 0, 2)
    assert sent == []
    for rank, work in ((0, fail), (1, never)):
        with pytest.raises(ZeroDivisionError):
            run_on_rank_0(work, rank, 2, errors=Exception)


def test_one_process_needs_no_process_group() -> None:
    assert run_on_rank_0(lambda: 7, 0, 1) == 7


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero, "TICK_S", 0.01)


def beats_during(work: threading.Event, done: list[int], ticks: int, *, counts: bool) -> int:
    """How often `beat` is called while `work` is waited for, in that many ticks."""
    beats: list[None] = []

    def tick() -> None:
        done.append(0)
        if len(done) == ticks:
            work.set()

    def waits() -> None:
        thread = threading.Thread(target=wakes_up_now_and_then)
        thread.start()
        work.wait()
        thread.join()

    def wakes_up_now_and_then() -> None:
        while not work.wait(0.003):
            pass

    progress = (lambda: len(done)) if counts else (lambda: 0)
    run_long_on_rank_0(waits, 0, 1, done=progress, beat=lambda: beats.append(None), tick=tick)
    return len(beats)


def test_work_that_counts_is_progress_and_a_call_that_hangs_is_none(fast: None) -> None:
    assert beats_during(threading.Event(), [], 20, counts=True) >= 20
    assert beats_during(threading.Event(), [], 20, counts=False) <= 10


def test_work_whose_place_in_the_code_changes_is_progress(fast: None) -> None:
    over = threading.Event()
    beats: list[None] = []

    def lists_folders() -> int:
        number = 0
        while not over.is_set():
            number += 1
        return number

    def beat() -> None:
        beats.append(None)
        if len(beats) == 5:
            over.set()

    assert run_long_on_rank_0(lists_folders, 0, 1, beat=beat) > 0


def test_long_work_has_a_result_or_an_error(fast: None) -> None:
    assert run_long_on_rank_0(lambda: 7, 0, 1) == 7

    def fails() -> None:
        raise DataError("/data", "is empty")

    with pytest.raises(DataError, match="/data: is empty"):
        run_long_on_rank_0(fails, 0, 1)

"""Work of rank 0 for all workers; the broadcast is replaced."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch.distributed as dist

from resnet_dist.errors import DataError
from resnet_dist.rank_zero import run_on_rank_0


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

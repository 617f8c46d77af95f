"""One process at a time makes an index."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from resnet_dist.data.index import turn as index_turn
from resnet_dist.data.index.turn import Turn


def test_one_has_the_turn_and_the_others_see_who(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".train.making"
    with Turn(file).taken() as first:
        second = Turn(file)
        with second.taken() as is_ours:
            assert (first, is_ours) == (True, False)
        assert second.holder() == f"process {os.getpid()} on {socket.gethostname()} for 0 s"
    with second.taken() as is_ours:
        assert is_ours
    assert list(file.parent.iterdir()) == []


def test_the_turn_of_a_process_that_ended_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".train.making"
    monkeypatch.setattr(index_turn, "BEAT_S", 0.01)
    file.write_text(f"0123456789abcdef {2**22 + 1} {socket.gethostname()} 4")  # above the largest process id of Linux
    with Turn(file).taken() as is_ours:
        assert is_ours
    assert not file.exists()


def test_the_turn_of_a_process_that_is_silent_is_taken_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_turn, "STALE_S", 0.05)
    monkeypatch.setattr(index_turn, "BEAT_S", 0.01)
    file = tmp_path / ".train.making"
    file.write_text("0123456789abcdef 1 elsewhere 4")
    turn = Turn(file)
    tries = 0
    while True:
        with turn.taken() as is_ours:
            if is_ours:
                break
        tries += 1
        time.sleep(0.01)
    assert tries > 1
    assert not file.exists()


def test_a_process_that_works_keeps_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(index_turn, "BEAT_S", 0.01)
    monkeypatch.setattr(index_turn.time, "monotonic", lambda: clock)
    file = tmp_path / ".train.making"
    with Turn(file).taken():
        other, seen = Turn(file), b""
        for _ in range(5):
            while file.read_bytes() == seen:
                time.sleep(0.001)
            seen = file.read_bytes()
            with other.taken() as is_ours:
                assert not is_ours
            clock += 0.9 * index_turn.STALE_S


def test_nobody_waits_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Turn(tmp_path / "file" / ".train.making").taken() as is_ours:
        assert is_ours

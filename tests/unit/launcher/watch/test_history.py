"""What is kept of a metrics.jsonl that grows, is torn, or is large."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from watch_records import evaluation, event, records

from launcher.run.directory import RunDirectory
from launcher.watch import history as histories
from launcher.watch.history import History
from resnet_dist.telemetry import json_lines

Write = Callable[..., None]


@pytest.fixture
def history(small_run: RunDirectory) -> History:
    return History(small_run.metrics)


def test_nothing_was_written_yet(history: History) -> None:
    assert not history.read(1.0)
    assert history.train(10)["step"] == []
    assert history.evals(10)["top1"] == []
    assert history.recent() is None


def test_curves_are_columns_of_what_was_written_since(history: History, write: Write) -> None:
    write(event("started", 0, total_steps=100), records(1, 3), evaluation(3, 0.5))
    history.read(1.0)
    write(records(4, 5), evaluation(5, 0.4))
    history.read(1.0)
    train, evals = history.train(100), history.evals(100)
    assert train["step"] == [1, 2, 3, 4, 5]
    assert train["loss"] == [2.98, 2.96, 2.94, 2.92, 2.9]
    assert train["time_s"] == [2.0, 4.0, 6.0, 12.0, 14.0]  # the evaluation took 4 s
    assert (evals["step"], evals["top1"], evals["time_s"]) == ([3, 5], [0.5, 0.4], [6.0, 14.0])
    assert (history.top1, history.best_top1, history.total_steps) == (0.4, 0.5, 100)
    assert history.spent == {"compute": 7.5, "data wait": 2.5, "evaluation": 8.0, "saving": 0.0, "repeated": 0.0}
    assert history.recent() == (2.0, 0.5)


def test_repeated_steps_are_dropped_and_their_time_is_shown(history: History, write: Write) -> None:
    write(event("started", 0), records(1, 6), evaluation(6, 0.9), event("started", 4), records(5, 5, loss=9.0))
    history.read(1.0)
    train = history.train(100)
    assert train["step"] == [1, 2, 3, 4, 5]
    assert train["loss"][-1] == 9.0
    assert train["time_s"] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert history.evals(100)["step"] == []
    assert history.best_top1 is None
    assert history.spent["repeated"] == 8.0  # two steps and an evaluation


def test_a_long_run_is_thinned(history: History, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "MAX_POINTS", 100)
    write(event("started", 0), records(1, 3_000), evaluation(3_000, 0.7))
    parsed: list[bytes] = []
    monkeypatch.setattr(histories, "_parsed", lambda line, parse=histories._parsed: parsed.append(line) or parse(line))
    history.read(10.0)
    assert len(parsed) < 250  # the others were passed over
    train = history.train(50)
    assert len(train["step"]) <= 52
    assert train["step"][-1] == 3_000  # the newest is there
    assert train["time_s"][-1] == pytest.approx(6_000, rel=0.01)
    assert history.evals(50)["top1"] == [0.7]
    write(records(3_001, 9_000))
    history.read(10.0)
    assert len(history._train) <= 201
    assert history.train(50)["step"][-1] == 9_000


def test_the_newest_record_is_the_last_one(history: History, write: Write) -> None:
    write(event("started", 0))
    history.read(1.0)
    history._stride = 2  # 2, 4, ... are kept
    write(records(1, 4))
    history.read(1.0)
    assert history.newest["step"] == 4
    write(records(5, 5))
    history.read(1.0)
    assert history.newest["step"] == 5
    assert history.train(10)["step"] == [2, 4, 5]


def test_a_large_file_is_read_in_parts(history: History, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_CHUNK_BYTES", 1_000)
    write(records(1, 20))
    assert history.read(0.0)
    assert 0 < history.fraction_read < 1
    while history.read(0.0):
        pass
    assert history.train(100)["step"] == list(range(1, 21))


def test_torn_and_foreign_lines_are_counted_and_left_out(history: History, small_run: RunDirectory) -> None:
    whole = json_lines.encode(records(2, 2)[0])
    small_run.metrics.write_bytes(b'{"kind": "train", "step": \n\x00\x00\n[1]\n{"kind": "eval"}\n' + whole[:30])
    history.read(1.0)
    assert history.num_unreadable == 4
    with small_run.metrics.open("ab") as file:
        file.write(whole[30:])
    history.read(1.0)
    assert history.train(10)["step"] == [2]


def test_another_run_of_the_same_name_begins_again(history: History, small_run: RunDirectory, write: Write) -> None:
    write(records(1, 9))
    history.read(1.0)
    small_run.metrics.unlink()
    write(records(1, 2))
    history.read(1.0)
    assert history.train(10)["step"] == [1, 2]


def test_an_evaluation_beside_training_takes_no_time_of_it(history: History, write: Write) -> None:
    write(records(1, 4), evaluation(2, 0.5, beside=True))
    history.read(1.0)
    assert history.spent["evaluation"] == 0.0
    assert history.evals(10)["time_s"] == [4.0]


def test_events_are_texts_without_commands_for_a_terminal(history: History, small_run: RunDirectory) -> None:
    lines = [
        b'{"kind": "event", "step": 3, "event": "warning", "detail": {"text": "full\\u001b[2J disk"}}\n',
        json_lines.encode(event("straggler", 4, rank=1, local_step_time_s=0.5, others_s=0.1)),
        json_lines.encode(event("bad_image", 5, path="/a.jpg", problem="is cut short", rank=1)),
        json_lines.encode(event("checkpoint", 5, stalled_s=0.25)),
    ]
    small_run.metrics.write_bytes(b"".join(lines))
    history.read(1.0)
    assert history.events == [
        "step 5: bad image: path /a.jpg, problem is cut short, rank 1",
        "step 3: full disk",
    ]
    assert [(mark.step, mark.sign) for mark in history.marks] == [(4, "s")]
    assert history.spent["saving"] == 0.25


def test_numbers_that_are_not_finite_are_gaps(history: History, write: Write) -> None:
    write(records(1, 1), records(2, 2, loss=None), records(3, 3, step_time_s=None), evaluation(3, None))
    history.read(1.0)
    assert history.train(10)["loss"] == [2.98, None, 2.94]
    assert history.top1 is None


def test_a_pipe_in_place_of_the_file_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="named pipe"):
        History(tmp_path / "metrics.jsonl").read(1.0)

"""Turns, ratios and tables."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import (
    Ratio,
    Row,
    interleave,
    notes_of,
    order,
    ratio,
    speed_row,
    table,
    table_of,
    time_row,
    write,
)


def test_each_round_has_a_turn_of_each_peer_and_every_other_round_is_reversed() -> None:
    assert "".join(peer for _, peer in order("abc", rounds=3)) == "abccbaabc"


def test_a_turn_is_timed_from_wait_to_wait_and_divided_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, did = [0.0], []

    def peer(name: str, seconds: float) -> measure.Run:
        def run(steps: int) -> None:
            did.append((name, steps))
            now[0] += seconds * steps

        return run

    def wait() -> None:
        did.append(("wait", 0))

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    times = interleave({"a": peer("a", 1.0), "b": peer("b", 2.0)}, rounds=2, steps=5, warm_up=1, wait=wait)
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    turns = [("a", 5), ("b", 5), ("b", 5), ("a", 5), ("a", 5), ("b", 5)]  # the first round is a warm-up
    assert did == [step for turn in turns for step in (("wait", 0), turn, ("wait", 0))]


def test_steps_at_the_start_of_a_turn_do_not_count_for_a_peer_that_works_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ready = [0.0], [3]

    def run(steps: int) -> None:
        for _ in range(steps):
            now[0] += 0.0 if ready[0] else 1.0
            ready[0] = max(ready[0] - 1, 0)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert interleave({"ahead": run}, rounds=1, steps=2, warm_up=0, lead=3) == {"ahead": [1.0]}


def test_results_are_no_change_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def git(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "abc1234\n" if "rev-parse" in command else "", "")

    monkeypatch.setattr(measure.subprocess, "run", git)
    assert measure._commit() == "abc1234"
    assert ":(exclude,top)benchmarks/results" in asked[-1]


def test_a_ratio_is_formed_round_by_round() -> None:
    slow_second_half = [1.0, 1.0, 10.0, 10.0]
    assert ratio([2.0, 2.0, 20.0, 20.0], slow_second_half) == Ratio(2.0, 2.0, 2.0)
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == Ratio(3.0, 2.5, 3.5)
    assert ratio([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_a_goal_is_the_maximum_of_a_time_and_the_minimum_of_a_speed() -> None:
    faster, slower = [1.0, 1.0], [2.0, 2.0]
    assert time_row("step", "peer", faster, slower, goal=1.02).reached is True
    assert time_row("step", "peer", slower, faster, goal=1.02).reached is False
    assert time_row("step", "peer", slower, faster).reached is None
    row = speed_row("images/s", "peer", faster, slower, num_images=8, goal=1.0)
    assert (row.ours, row.theirs, row.ratio.median, row.reached) == (8.0, 4.0, 2.0, True)


def test_rows_read_back_from_json_give_the_same_table() -> None:
    row = Row("step", "peer", "time", 0.5, 0.25, Ratio(2.0, 1.9, 2.1), goal=1.02)
    again = json.loads(json.dumps(row.record()))
    lines = table_of([again]).splitlines()
    assert lines[0].startswith("| what ")
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "step", "peer", "500.0 ms", "250.0 ms", "2.000 (1.900 to 2.100)", "≤ 1.02", "missed",
    ]  # fmt: skip


def test_columns_are_aligned() -> None:
    assert table(("a", "bb"), [["long", "1"]]) == "| a    | bb |\n| ---- | -: |\n| long |  1 |"


def test_results_record_time_commit_and_machine(tmp_path: Path) -> None:
    file = write("some", {"rows": []}, folder=tmp_path)
    found = json.loads(file.read_text())
    assert file == tmp_path / "some.json"
    assert found["rows"] == []
    assert set(found) == {"time", "commit", "machine", "rows"}
    assert {"cpu", "num_cpus", "torch", "python", "load"} <= set(found["machine"])


def test_the_cause_of_a_missed_goal_is_kept_and_shown_and_no_other() -> None:
    missed, reached = (time_row("step", "peer", [1.0], [1.0], goal, note="a note", cause="slow") for goal in (0.9, 1.0))
    assert missed.record()["cause"] == "slow"
    assert reached.record()["cause"] == ""
    assert list(notes_of([missed.record()])) == ["- step: a note", "- step / peer: missed. Cause: slow"]
    assert list(notes_of([reached.record()])) == ["- step: a note"]
    unexplained = time_row("step", "peer", [1.0], [1.0], 0.9).record()
    assert list(notes_of([unexplained])) == ["- step / peer: missed. Cause: not known"]


def test_a_goal_between_the_quartiles_is_missed_by_noise() -> None:
    row = time_row("step", "peer", [0.9, 1.0, 1.1], [1.0, 1.0, 1.0], 0.97).record()
    assert row["reached"] is False
    assert list(notes_of([row])) == ["- step / peer: missed. Cause: noise: the goal lies between the quartiles"]

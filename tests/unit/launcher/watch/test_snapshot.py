"""Snapshots as JSON, which comes from another machine."""

from __future__ import annotations

import json

import pytest

from launcher.watch.snapshot import EVALS, TRAIN, Mark, Snapshot, Worker, from_json

WORKER = Worker(rank=1, host="n1", phase="step", step=7, beat_s=0.5, progress_s=0.1, note="hung")
SNAPSHOT = Snapshot(
    run="/runs/a",
    name="a",
    state="running",
    step=7,
    loss=0.5,
    train={name: [1.0, None] for name in TRAIN},
    evals={name: [] for name in EVALS},
    spent={"compute": 1.5},
    marks=[Mark(step=3, sign="x", text="lost")],
    workers=[WORKER],
    attempts=["1  failed"],
    events=["step 3: a warning"],
    ranks=[0, 1],
    log=["a line"],
)


def test_a_snapshot_survives_its_journey() -> None:
    line = SNAPSHOT.to_json()
    assert "\n" not in line
    assert from_json(line) == SNAPSHOT


def test_what_is_not_finite_is_null() -> None:
    assert json.loads(Snapshot(run="", name="", loss=float("nan")).to_json())["loss"] is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "error: no such verb",
        "[]",
        "null",
        '{"run": "/a"}',
        '{"run": "/a", "name": 3}',
        '{"run": "a", "name": "b", "loss": "c"}',
    ],
    ids=["empty", "text", "list", "null", "no name", "a number as name", "a text as loss"],
)
def test_other_lines_are_no_snapshots(line: str) -> None:
    assert from_json(line) is None


def test_a_newer_or_hostile_launcher_cannot_break_the_view() -> None:
    content = json.loads(SNAPSHOT.to_json()) | {
        "new_key": 1,
        "state": "running\x1b[2J",
        "marks": [{"step": "x"}, 3, {"step": 1, "sign": "s", "text": "t", "more": 2}],
        "workers": None,
        "train": {"step": [1.0, 2.0]},
        "evals": {name: [1.0] * (number + 1) for number, name in enumerate(EVALS)},
    }
    found = from_json(json.dumps(content))
    assert found is not None
    assert found.state == "running"
    assert [mark.sign for mark in found.marks] == ["s"]
    assert found.workers == []
    assert found.train == {}
    assert found.evals == {name: [1.0] for name in EVALS}

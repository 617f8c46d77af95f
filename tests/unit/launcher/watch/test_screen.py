"""Screens of any size, for one run and for two."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from launcher.run.status import NOT_BEGUN
from launcher.watch.lines import plain, width_of
from launcher.watch.screen import HELP, SIGNS, screen, text
from launcher.watch.snapshot import EVALS, TRAIN, Mark, Snapshot, Worker
from launcher.watch.view import AXES, PANELS, SMOOTHING, View, smoothed

STEPS = [float(step) for step in range(1, 101)]
RUN = Snapshot(
    run="/runs/digits",
    name="digits",
    state="running",
    step=100,
    total_steps=200,
    time_left_s=83.0,
    loss=0.5,
    top1=0.9,
    best_top1=0.95,
    images_per_s=1200.0,
    learning_rate=0.1,
    epoch=2.5,
    attempt=2,
    num_workers=2,
    last_beat_s=1.0,
    train={name: [step / 10 for step in STEPS] if name != "step" else STEPS for name in TRAIN},
    evals={name: [10.0, 90.0] if name == "step" else [0.5, 0.9] for name in EVALS},
    spent={"compute": 90.0, "data wait": 5.0, "evaluation": 4.0, "saving": 1.0},
    step_time_s=0.9,
    data_wait_s=0.05,
    marks=[Mark(step=50, sign="x", text="step 50: WorkerLost")],
    attempts=["1  from step 0: WorkerLost", "2  from step 40: it goes on"],
    events=["step 60: a warning"],
    workers=[
        Worker(rank=rank, host=f"node{rank}", phase="step", step=100, beat_s=1.0, progress_s=0.0) for rank in range(9)
    ],
    ranks=[0, 1],
    log=[f"line {number}" for number in range(100)],
)
OTHER = dataclasses.replace(
    RUN, name="other", state="failed", reason="DivergedError: the loss is nan", time_left_s=None
)
HOSTILE = dataclasses.replace(
    RUN,
    name="名前" * 60,
    reason="two\nlines\tand a tab" * 20,
    log=["x" * 5_000, "", "\t\t"],
    workers=[
        Worker(rank=10**12, host="h" * 300, phase="p" * 99, step=10**18, beat_s=1e30, progress_s=-1.0, note="n" * 500)
    ],
    train={name: [1e300, -1e300, None] for name in TRAIN},
    total_steps=0,
    spent={"compute": -1.0, "unknown": 3.0},
    time_left_s=-5.0,
)
EMPTY = Snapshot(run="", name="later", state="reading")


def shown(*runs: Snapshot, width: int = 80, height: int = 24, **view: object) -> str:
    return "\n".join(plain(row) for row in screen(runs, View(**view), width, height))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "runs",
    [[RUN], [RUN, OTHER], [EMPTY], [HOSTILE], [HOSTILE, EMPTY]],
    ids=["one", "two", "empty", "hostile", "hostile and empty"],
)
def test_a_screen_has_the_size_of_its_terminal(runs: list[Snapshot]) -> None:
    sizes = ((80, 24), (120, 40), (40, 15), (20, 5), (250, 80), (10, 2), (1, 1))
    for (width, height), panel, axis in itertools.product(sizes, PANELS, AXES):
        rows = screen(runs, View(panel=panel, axis=axis), width, height)
        assert len(rows) == height
        assert {width_of(row) for row in rows} == {width}
        assert width < 40 or "q quit" in plain(rows[-1])


def test_a_terminal_of_80_columns_has_four_charts_and_what_else_counts() -> None:
    found = shown(RUN)
    for part in (
        "digits  running  ██████░░░░░░░ 50%  left 1:23  step 100/200  loss 0.5",
        "top-1 90.00% (best 95.00%)",
        "training loss, smoothed ",
        "top-1 of evaluations",
        "images/s, smoothed",
        "learning rate",
        " step 50 ",
        "time  compute 90%, data wait 5%, evaluation 4%, saving 1%",
        "workers  9 in step",
        "newest  step 50: WorkerLost",
        "line 99",
        " 1 curves   2 time   3 workers   4 log  ? help q quit",
    ):
        assert part in found


def test_a_terminal_of_40_columns_has_one_chart() -> None:
    found = shown(RUN, width=40, height=15)
    assert "training loss" in found
    assert "learning rate" not in found
    assert "left 1:23" in found
    assert "DivergedError: the loss is nan" in shown(OTHER, width=40, height=15)


def test_two_runs_are_told_apart_without_colours() -> None:
    found = shown(RUN, OTHER)
    assert "A ━━  digits  running" in found
    assert "B ╍╍  other  failed" in found
    assert "BA" in found  # at the ends of the curves
    for panel in ("time", "workers", "log"):
        for width in (80, 60):
            found = shown(RUN, OTHER, panel=panel, width=width)
            assert "A digits" in found
            assert "B other" in found


def test_the_panels() -> None:
    time = shown(RUN, panel="time")
    assert "compute     90.0%     1:30  ███" in time
    assert "newest steps: 0.9 s each, 6% of it waits for data" in time
    assert "2  from step 40: it goes on" in time
    assert "x step 50: WorkerLost" in time
    assert "step 60: a warning" in time
    workers = shown(RUN, panel="workers", height=8, scroll=3)
    assert "rank host" in workers
    assert "node3" in workers
    assert "node2" not in workers
    log = shown(RUN, panel="log", rank=0, scroll=10)
    assert "log of rank 0" in log
    assert "line 89" in log
    assert "line 90" not in log
    assert "Ranks with a log: 0, 1" in shown(dataclasses.replace(RUN, rank=7), panel="log")
    assert "quit; the run goes on" in shown(RUN, help=True)


@pytest.mark.parametrize(("width", "runs"), [(40, [RUN]), (80, [RUN, OTHER])], ids=["narrow", "two runs"])
def test_the_notes_of_workers_are_shown_where_there_is_little_space(width: int, runs: list[Snapshot]) -> None:
    notes = ("straggler: 0.5 s a step, others 0.1 s", "hung", "silent for 31 s", "ended", "gone")
    workers = [
        Worker(rank=rank, host="localhost", phase="evaluate", step=10**6, beat_s=999.0, progress_s=0.0, note=note)
        for rank, note in enumerate(notes)
    ]
    rows = shown(*(dataclasses.replace(run, workers=workers) for run in runs), width=width, panel="workers").split("\n")
    for note in ("straggler", "hung", "silent for 31", "ended", "gone"):
        assert sum(f"999 s  {note}" in row for row in rows) == 1, note
        assert sum(row.count(f"999 s  {note}") for row in rows) == len(runs), note
    assert "localhost" in shown(dataclasses.replace(RUN, workers=workers), width=60, panel="workers")


def test_sentences_are_whole_where_there_is_little_space() -> None:
    time = shown(RUN, width=40, panel="time")
    for sentence in ("where time goes, of 1:40 in the training loop", "0.9 s each, 6% of it waits for data"):
        assert sentence in " ".join(time.split())
    help_text = " ".join(shown(RUN, width=40, height=24, help=True).split())
    for sentence in (*(f"{keys} {words}" for keys, words in HELP), SIGNS):
        assert sentence in help_text
    assert "quit; the run goes on" in shown(RUN, width=40, height=15, help=True)


def test_a_finished_run_without_records_says_so() -> None:
    lost = dataclasses.replace(EMPTY, state="finished", lacks_records=True)
    for panel in ("curves", "time"):
        assert "metrics.jsonl is missing or empty" in shown(lost, width=40, panel=panel)
        assert "metrics.jsonl" not in shown(EMPTY, panel=panel)
    assert "metrics.jsonl" not in shown(lost, EMPTY)


def test_a_run_that_has_not_begun_is_no_error() -> None:
    later = dataclasses.replace(EMPTY, state="unknown", reason=NOT_BEGUN)
    [found] = [row for row in screen([later], View(), 80, 24) if NOT_BEGUN in plain(row)]
    assert plain(found) == f"later  not started  {NOT_BEGUN}"
    assert "bad" not in {style for _, style in found}
    silent = dataclasses.replace(later, reason="squeue did not answer")
    [found] = [row for row in screen([silent], View(), 80, 24) if silent.reason in plain(row)]
    assert ("unknown", "bad") in found


def test_the_axes_and_the_smoothing_are_named() -> None:
    for axis, middle in (("step", "step 50"), ("epoch", "epoch 5"), ("time", "time 5 s")):
        assert f" {middle} " in shown(RUN, axis=axis)
    assert "training loss, smoothed" in shown(RUN)
    assert "smoothed" not in shown(RUN, smoothing="none")


def test_the_titles_of_charts_beside_each_other_are_whole() -> None:
    losses = {**RUN.train, "loss": [1e4 / step**2 for step in STEPS]}
    for width in (76, 80):
        rows = shown(dataclasses.replace(RUN, train=losses), width=width).splitlines()
        [titles] = [row for row in rows if "top-1 of" in row]
        assert titles.split("  ")[0] == "training loss, smoothed, log axis"
        assert titles.endswith(" top-1 of evaluations")


def test_an_average_has_no_bias_at_its_start_and_keeps_gaps() -> None:
    points = [(float(x), 2.0) for x in range(50)]
    assert smoothed(points, SMOOTHING["strong"]) == [(x, pytest.approx(2.0)) for x, _ in points]
    assert smoothed([(0.0, 1.0), (1.0, None), (2.0, 1.0)], 0.1)[1] == (1.0, None)
    assert smoothed(points, 0.0) == points


def test_everything_is_printed_where_there_is_no_screen() -> None:
    found = text([RUN, OTHER], View(), 80)
    for part in ("digits  running", "other  failed", "training loss", "learning rate", "workers: 9 in step", "line 99"):
        assert part in found
    assert max(map(len, found.splitlines())) <= 80

"""How a run is doing: eight words, the same on every place, from what there is to see."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.run import heartbeats, lease, submissions
from launcher.run.directory import Attempt, Fatal, RunDirectory
from launcher.run.heartbeats import Beat
from launcher.run.holder import Holder
from launcher.run.status import Held, Seen, by_word, judge, lease_of, look
from launcher.run.submissions import JobStatus, Submission

HOLDER = Holder("u", "n1", 42, "1", "", "", "2026-01-01T00:00:00+00:00")
ALIVE = Held(HOLDER, True)
SILENT = Held(HOLDER, False, 90.0)  # on another machine, not renewed for 90 s
JOB = Submission("slurm", "4711", "2026-01-01T00:00:00+00:00", "login1")
BEGUN = Attempt(1, "2026-01-01T00:01:00+00:00")
WAITS, RUNS = JobStatus("pending", "Priority"), JobStatus("running", "running")
GONE, MUTE = (
    JobStatus("gone", "SLURM has forgotten job 4711"),
    JobStatus("unreachable", "squeue is not on this machine"),
)


def ended(code: int, cause: str = "why") -> Attempt:
    return dataclasses.replace(BEGUN, ended="2026-01-01T00:02:00+00:00", exit_code=code, cause=cause, last_step=40)


def beat(phase: str, rank: int = 0, **more: Any) -> Beat:
    return Beat(**{"rank": rank, "host": "n1", "pid": 42, "tick": 3, "phase": phase, "step": 7, "age_s": 0.1, **more})


def seen(**what: Any) -> Seen:
    return Seen(**{"submission": JOB, **what})


TABLE: list[tuple[str, Seen, str, int | None]] = [
    ("submitted, and waiting", seen(word=WAITS), "pending", None),
    ("its job runs, nothing has begun", seen(word=RUNS), "starting", None),
    ("a process is at work, nothing has begun", seen(held=ALIVE, word=RUNS), "starting", None),
    ("its job is gone, nothing has begun", seen(word=GONE), "failed", None),
    ("nobody can be asked, nothing has begun", seen(word=MUTE), "unknown", None),
    ("never submitted, nothing has begun", Seen(), "unknown", None),
    ("no beat yet", seen(attempt=BEGUN, held=ALIVE, word=RUNS), "starting", None),
    ("all workers start", seen(attempt=BEGUN, held=ALIVE, beats=[beat("start")]), "starting", None),
    ("steps are made", seen(attempt=BEGUN, held=ALIVE, beats=[beat("step"), beat("start", 1)]), "running", None),
    ("one worker saves", seen(attempt=BEGUN, held=ALIVE, beats=[beat("save"), beat("step", 1)]), "saving", None),
    ("at work, its place mute", seen(attempt=BEGUN, held=ALIVE, beats=[beat("step")], word=MUTE), "running", None),
    ("silent, its place mute", seen(attempt=BEGUN, held=SILENT, word=MUTE), "unknown", None),
    ("silent, its job runs", seen(attempt=BEGUN, held=SILENT, word=RUNS), "unknown", None),
    ("silent, its job gone", seen(attempt=BEGUN, held=SILENT, word=GONE), "failed", None),
    ("silent, nobody to ask", Seen(attempt=BEGUN, held=SILENT), "unknown", None),
    ("no end, the lease given back", Seen(attempt=BEGUN), "failed", None),
    ("stopped, saved", seen(attempt=ended(75), word=GONE), "stopped", 75),
    ("Ctrl-C, saved", Seen(attempt=ended(130)), "stopped", 130),
    ("stopped, and requeued", seen(attempt=ended(75), word=WAITS), "pending", None),
    ("lost without a word, and requeued", seen(attempt=BEGUN, held=SILENT, word=WAITS), "pending", None),
    ("failed, and its driver goes on", seen(attempt=ended(76), held=ALIVE, word=RUNS), "starting", None),
    ("failed, the driver gone too", seen(attempt=ended(76), word=GONE), "failed", 76),
    ("finished", seen(attempt=ended(0), finished={"step": 100}, word=GONE), "finished", 0),
    ("finished, the place mute", seen(attempt=ended(0), finished={"step": 100}, word=MUTE), "finished", 0),
    ("given up", seen(attempt=ended(79), fatal=Fatal(79, "loss is nan", "t"), word=GONE), "failed", 79),
    ("given up, submitted again", seen(attempt=ended(79), fatal=Fatal(79, "nan", "t"), word=WAITS), "pending", None),
    ("given up, at work again", seen(attempt=ended(79), fatal=Fatal(79, "nan", "t"), held=ALIVE), "starting", None),
]


@pytest.mark.parametrize(("what", "state", "code"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_seen_becomes_a_word(what: Seen, state: str, code: int | None) -> None:
    found, _, exit_code = judge(what)
    assert (found, exit_code) == (state, code)


def test_a_pending_run_says_why() -> None:
    assert judge(seen(word=WAITS))[1] == "Priority"


def test_unreachable_is_not_failed_and_says_who_cannot_be_asked() -> None:
    state, reason, _ = judge(seen(attempt=BEGUN, held=SILENT, word=MUTE))
    assert state == "unknown"
    assert reason == "no sign of life for 90 s from process 42 on n1; squeue is not on this machine"


def test_a_failure_points_at_what_is_left_of_it(tmp_path: Path) -> None:
    _, cause, _ = judge(seen(attempt=ended(76, "WorkerLost: killed\nin detail"), word=GONE, incident=tmp_path))
    assert cause == f"WorkerLost: killed ({tmp_path}/summary.txt)"


@pytest.mark.parametrize(
    ("word", "state", "code"),
    [
        (WAITS, "pending", None),
        (RUNS, "running", None),
        (MUTE, "unknown", None),
        (GONE, "unknown", None),  # ended, but how? the run directory knows
        (JobStatus("gone", "Ray says SUCCEEDED", 0), "finished", 0),
        (JobStatus("gone", "Ray says FAILED", 75), "stopped", 75),
        (JobStatus("gone", "Ray says FAILED", 78), "failed", 78),
    ],
)
def test_where_the_run_directory_is_not_here_the_place_alone_is_heard(
    word: JobStatus, state: str, code: int | None
) -> None:
    found, _, exit_code = by_word(word)
    assert (found, exit_code) == (state, code)


def test_a_lease_of_this_machine_is_alive_as_long_as_its_process(small_run: RunDirectory) -> None:
    assert lease_of(small_run) == Held(None, False)
    with lease.acquire(small_run.lease):
        assert lease_of(small_run).alive
    assert lease_of(small_run) == Held(None, False)


def elsewhere(run: RunDirectory, age_s: float) -> Path:
    """A lease that a process on another machine holds, renewed so many seconds ago."""
    run.lease.mkdir()
    file = run.lease / "00000001.json"
    file.write_text(json.dumps(dataclasses.asdict(HOLDER)))
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def test_a_lease_elsewhere_is_alive_as_long_as_it_is_renewed(small_run: RunDirectory) -> None:
    elsewhere(small_run, age_s=10)
    assert lease_of(small_run).alive


def test_a_lease_elsewhere_that_is_not_renewed_is_silent(small_run: RunDirectory) -> None:
    elsewhere(small_run, age_s=500)
    held = lease_of(small_run, patience_s=0.0)
    assert not held.alive
    assert 499 < held.silent_s < 600


def test_a_clock_that_differs_makes_nobody_dead(small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = elsewhere(small_run, age_s=500)  # by our clock; its holder renews it all the same
    monkeypatch.setattr("time.sleep", lambda seconds: os.utime(file, (1.0, 1.0)))
    assert lease_of(small_run, patience_s=5.0).alive


def test_a_run_at_work_shows_step_loss_speed_and_beat(
    small_run: RunDirectory, train_record: Callable[..., str]
) -> None:
    number = small_run.begin_attempt({"workers": 2})
    small_run.metrics.write_text(train_record(10, loss=3.0) + train_record(20) + '{"kind": "train", "st')
    small_run.logs(number).heartbeats.mkdir(parents=True)
    heartbeats.write(small_run.logs(number), beat("step", step=24))
    with lease.acquire(small_run.lease):
        status = look(small_run, None)
    assert (status.state, status.step, status.total_steps) == ("running", 23, 100)
    assert (status.loss, status.images_per_s, status.attempt, status.workers) == (2.5, 400.0, 1, 2)
    assert status.last_beat_s is not None
    assert status.last_beat_s < 60


def test_a_new_attempt_shows_nothing_of_the_steps_that_are_done_again(
    small_run: RunDirectory, train_record: Callable[..., str]
) -> None:
    small_run.end_attempt(small_run.begin_attempt(), 76, "WorkerLost: killed", 50)
    number = small_run.begin_attempt()
    (small_run.checkpoints / "step-00000040").mkdir()
    started = json.dumps({"kind": "event", "event": "started", "step": 40}) + "\n"
    small_run.metrics.write_text(train_record(50) + started)
    small_run.logs(number).heartbeats.mkdir(parents=True)
    heartbeats.write(small_run.logs(number), beat("step", step=42))
    with lease.acquire(small_run.lease):
        status = look(small_run, None)
    assert (status.step, status.loss, status.attempt) == (41, None, 2)


def test_the_number_of_steps_is_found_without_the_number_of_images(
    small_run: RunDirectory, train_record: Callable[..., str]
) -> None:
    text = small_run.config.read_text().replace("num_samples: 1000", "num_samples: null")
    small_run.write_config(text.replace("100 steps", "2 epochs"))
    small_run.begin_attempt()
    assert look(small_run, None).total_steps is None
    small_run.metrics.write_text(train_record(20))
    assert look(small_run, None).total_steps == 250  # 2 x 1,000 images / 8


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no run here"):
        look(RunDirectory(tmp_path, "empty"), None)


def test_submissions_are_kept_in_order_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "new")
    assert submissions.newest(run) is None
    submissions.record(run, JOB)
    with run.submissions.open("a") as file:
        file.write('{"place": "sl\n')
    submissions.record(run, dataclasses.replace(JOB, id="4712"))
    assert [one.id for one in submissions.read(run)] == ["4711", "4712"]
    assert submissions.newest(run) == dataclasses.replace(JOB, id="4712")

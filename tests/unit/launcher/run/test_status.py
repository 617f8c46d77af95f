"""The state of a run, one of eight, from its directory and its scheduler."""

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
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.holder import Holder
from launcher.run.record_types import Attempt, Fatal
from launcher.run.status import Evidence, LeaseState, classify, classify_job, lease_state, read_status
from launcher.run.submissions import JobStatus, Submission

HOLDER = Holder("u", "n1", 42, "1", "", "", "2026-01-01T00:00:00+00:00")
ALIVE = LeaseState(HOLDER, True)
SILENT = LeaseState(HOLDER, False, 90.0)  # on another machine, not renewed for 90 s
JOB = Submission("slurm", "4711", "2026-01-01T00:00:00+00:00", "login1")
BEGUN = Attempt(1, "2026-01-01T00:01:00+00:00")
PENDING, RUNNING = JobStatus("pending", "Priority"), JobStatus("running", "running")
GONE = JobStatus("gone", "SLURM has no record of job 4711")
UNREACHABLE = JobStatus("unreachable", "squeue is not on this machine")


def ended(code: int, cause: str = "why") -> Attempt:
    return dataclasses.replace(BEGUN, ended="2026-01-01T00:02:00+00:00", exit_code=code, cause=cause, last_step=40)


def beat(phase: str, rank: int = 0, **more: Any) -> Heartbeat:
    return Heartbeat(
        **{"rank": rank, "host": "n1", "pid": 42, "tick": 3, "phase": phase, "step": 7, "age_s": 0.1, **more}
    )


def submitted(**what: Any) -> Evidence:
    return Evidence(**{"submission": JOB, **what})


TABLE: list[tuple[str, Evidence, str, int | None]] = [
    ("submitted, and waiting", submitted(job=PENDING), "pending", None),
    ("its job runs, nothing has begun", submitted(job=RUNNING), "starting", None),
    ("a process holds the lease, nothing has begun", submitted(lease=ALIVE, job=RUNNING), "starting", None),
    ("its job is gone, nothing has begun", submitted(job=GONE), "failed", None),
    ("scheduler unreachable, nothing has begun", submitted(job=UNREACHABLE), "unknown", None),
    ("never submitted, nothing has begun", Evidence(), "unknown", None),
    ("no beat yet", submitted(attempt=BEGUN, lease=ALIVE, job=RUNNING), "starting", None),
    ("all workers start", submitted(attempt=BEGUN, lease=ALIVE, beats=[beat("start")]), "starting", None),
    (
        "the first step is done",
        submitted(attempt=BEGUN, lease=ALIVE, beats=[beat("start")], has_started=True),
        "running",
        None,
    ),
    ("steps are made", submitted(attempt=BEGUN, lease=ALIVE, beats=[beat("step"), beat("start", 1)]), "running", None),
    ("one worker saves", submitted(attempt=BEGUN, lease=ALIVE, beats=[beat("save"), beat("step", 1)]), "saving", None),
    (
        "running, scheduler unreachable",
        submitted(attempt=BEGUN, lease=ALIVE, beats=[beat("step")], job=UNREACHABLE),
        "running",
        None,
    ),
    ("silent, scheduler unreachable", submitted(attempt=BEGUN, lease=SILENT, job=UNREACHABLE), "unknown", None),
    ("silent, its job runs", submitted(attempt=BEGUN, lease=SILENT, job=RUNNING), "unknown", None),
    ("silent, its job gone", submitted(attempt=BEGUN, lease=SILENT, job=GONE), "failed", None),
    ("silent, never submitted", Evidence(attempt=BEGUN, lease=SILENT), "unknown", None),
    ("no end, the lease released", Evidence(attempt=BEGUN), "failed", None),
    ("stopped, saved", submitted(attempt=ended(75), job=GONE), "stopped", 75),
    ("Ctrl-C, saved", Evidence(attempt=ended(130)), "stopped", 130),
    ("stopped, and requeued", submitted(attempt=ended(75), job=PENDING), "pending", None),
    ("killed, and requeued", submitted(attempt=BEGUN, lease=SILENT, job=PENDING), "pending", None),
    (
        "failed, and its driver starts another attempt",
        submitted(attempt=ended(76), lease=ALIVE, job=RUNNING),
        "starting",
        None,
    ),
    ("all steps done, its processes end", submitted(attempt=ended(0), lease=ALIVE), "running", None),
    ("stopped, its processes end", submitted(attempt=ended(75, "stopped on request"), lease=ALIVE), "running", None),
    ("preempted, and goes on elsewhere", submitted(attempt=ended(75, "preempted"), lease=ALIVE), "starting", None),
    ("failed, the driver gone too", submitted(attempt=ended(76), job=GONE), "failed", 76),
    ("finished", submitted(attempt=ended(0), finished={"step": 100}, job=GONE), "finished", 0),
    (
        "finished, scheduler unreachable",
        submitted(attempt=ended(0), finished={"step": 100}, job=UNREACHABLE),
        "finished",
        0,
    ),
    ("given up", submitted(attempt=ended(79), fatal=Fatal(79, "loss is nan", "t"), job=GONE), "failed", 79),
    (
        "given up, submitted again",
        submitted(attempt=ended(79), fatal=Fatal(79, "nan", "t"), job=PENDING),
        "pending",
        None,
    ),
    (
        "given up, and started again",
        submitted(attempt=ended(79), fatal=Fatal(79, "nan", "t"), lease=ALIVE),
        "starting",
        None,
    ),
]


@pytest.mark.parametrize(("what", "state", "code"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_state_follows_from_the_evidence(what: Evidence, state: str, code: int | None) -> None:
    found, _, exit_code = classify(what)
    assert (found, exit_code) == (state, code)


def test_a_run_is_running_once_its_records_say_so(small_run: RunDirectory) -> None:
    def state(*stages: str | None) -> str:
        events = [{"kind": "event", "event": "stage", "step": 0, "detail": {"begins": stage}} for stage in stages]
        small_run.metrics.write_text("".join(json.dumps(event) + "\n" for event in events))
        return read_status(small_run, None).state

    number = small_run.begin_attempt()
    small_run.logs(number).heartbeats.mkdir(parents=True)
    heartbeats.write(small_run.logs(number), beat("start"))  # rewritten every few seconds only
    with lease.acquire(small_run.lease):
        assert [state("first step"), state("first step", None)] == ["starting", "running"]
        os.utime(small_run.metrics, (1.0, 1.0))  # of an earlier attempt
        assert read_status(small_run, None).state == "starting"


def test_a_pending_run_says_why() -> None:
    assert classify(submitted(job=PENDING))[1] == "Priority"


def test_an_unreachable_scheduler_is_not_a_failure() -> None:
    state, reason, _ = classify(submitted(attempt=BEGUN, lease=SILENT, job=UNREACHABLE))
    assert state == "unknown"
    assert reason == "lease not renewed for 90 s by process 42 on n1; squeue is not on this machine"


def test_a_failure_names_its_summary(tmp_path: Path) -> None:
    _, cause, _ = classify(
        submitted(attempt=ended(76, "WorkerLost: killed\nin detail"), job=GONE, incident=tmp_path / "summary.txt")
    )
    assert cause == f"WorkerLost: killed ({tmp_path}/summary.txt)"


@pytest.mark.parametrize(
    ("job", "state", "code"),
    [
        (PENDING, "pending", None),
        (RUNNING, "running", None),
        (UNREACHABLE, "unknown", None),
        (GONE, "unknown", None),  # ended, but how? the run directory knows
        (JobStatus("gone", "Ray reports SUCCEEDED", 0), "finished", 0),
        (JobStatus("gone", "Ray reports FAILED", 75), "stopped", 75),
        (JobStatus("gone", "Ray reports FAILED", 78), "failed", 78),
    ],
)
def test_without_the_run_directory_the_scheduler_decides(job: JobStatus, state: str, code: int | None) -> None:
    found, _, exit_code = classify_job(job)
    assert (found, exit_code) == (state, code)


def test_a_lease_of_this_machine_is_alive_as_long_as_its_process(small_run: RunDirectory) -> None:
    assert lease_state(small_run) == LeaseState(None, False)
    with lease.acquire(small_run.lease):
        assert lease_state(small_run).alive
    assert lease_state(small_run) == LeaseState(None, False)


def elsewhere(run: RunDirectory, age_s: float) -> Path:
    """A lease held by a process on another machine, renewed `age_s` ago."""
    run.lease.mkdir()
    file = run.lease / "00000001.json"
    file.write_text(json.dumps(dataclasses.asdict(HOLDER)))
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def test_a_lease_elsewhere_is_alive_as_long_as_it_is_renewed(small_run: RunDirectory) -> None:
    elsewhere(small_run, age_s=10)
    assert lease_state(small_run).alive


def test_a_lease_elsewhere_that_is_not_renewed_is_silent(small_run: RunDirectory) -> None:
    elsewhere(small_run, age_s=500)
    held = lease_state(small_run, stale_lease_wait_s=0.0)
    assert not held.alive
    assert 499 < held.silent_s < 600


def test_a_different_clock_makes_no_holder_dead(small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = elsewhere(small_run, age_s=500)  # by our clock; its holder renews it all the same
    monkeypatch.setattr("time.sleep", lambda seconds: os.utime(file, (1.0, 1.0)))
    assert lease_state(small_run, stale_lease_wait_s=5.0).alive


def test_a_running_run_shows_step_loss_speed_and_heartbeat(
    small_run: RunDirectory, train_record: Callable[..., str]
) -> None:
    number = small_run.begin_attempt({"workers": 2})
    small_run.metrics.write_text(train_record(10, loss=3.0) + train_record(20) + '{"kind": "train", "st')
    small_run.logs(number).heartbeats.mkdir(parents=True)
    heartbeats.write(small_run.logs(number), beat("step", step=24))
    with lease.acquire(small_run.lease):
        status = read_status(small_run, None)
    assert (status.state, status.step, status.total_steps) == ("running", 23, 100)
    assert (status.loss, status.images_per_s, status.attempt, status.workers) == (2.5, 400.0, 1, 2)
    assert status.last_beat_s is not None
    assert status.last_beat_s < 60


def test_a_new_attempt_does_not_count_steps_that_are_repeated(
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
        status = read_status(small_run, None)
    assert (status.step, status.loss, status.attempt) == (41, None, 2)


def test_the_number_of_steps_is_found_without_the_number_of_images(
    small_run: RunDirectory, train_record: Callable[..., str]
) -> None:
    text = small_run.config.read_text().replace("num_samples: 1000", "num_samples: null")
    small_run.write_config(text.replace("100 steps", "2 epochs"))
    small_run.begin_attempt()
    assert read_status(small_run, None).total_steps is None
    small_run.metrics.write_text(train_record(20))
    assert read_status(small_run, None).total_steps == 250  # 2 x 1,000 images / 8


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no run here"):
        read_status(RunDirectory(tmp_path, "empty"), None)


def test_submissions_are_kept_in_order_and_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "new")
    assert submissions.newest(run) is None
    submissions.record(run, JOB)
    with run.submissions.open("a") as file:
        file.write('{"place": "sl\n')
    submissions.record(run, dataclasses.replace(JOB, id="4712"))
    assert [one.id for one in submissions.read(run)] == ["4711", "4712"]
    assert submissions.newest(run) == dataclasses.replace(JOB, id="4712")

"""Snapshots of run directories in every state, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watch_records import evaluation, event, records

from launcher.run import lease, submissions
from launcher.run.directory import RunDirectory
from launcher.run.status import read_status
from launcher.run.submissions import JobStatus
from launcher.watch import reader as readers
from launcher.watch.reader import Limits, Reader
from launcher.watch.snapshot import Snapshot

FIXTURE = Path(__file__).parents[3] / "fixtures" / "run-0.1" / "storage"
Do = Callable[..., Any]


def test_a_run_that_has_not_begun(small_run: RunDirectory) -> None:
    found = Reader(small_run).read()
    assert (found.state, found.reason) == ("unknown", "no attempt has begun, and no job was submitted")
    assert (found.step, found.total_steps, found.workers, found.log) == (None, 100, [], [])


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_finished_run_whose_records_were_lost(small_run: RunDirectory, write: Do, content: bytes | None) -> None:
    if content is not None:
        small_run.metrics.write_bytes(content)
    assert not Reader(small_run).read().lacks_records
    small_run.mark_finished({"step": 100})
    assert Reader(small_run).read().lacks_records
    write(records(1, 10))
    assert not Reader(small_run).read().lacks_records


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = Reader(RunDirectory(tmp_path, "later")).read()
    assert (found.name, found.state) == ("later", "unknown")


def test_a_submitted_run_waits_and_shows_the_output_of_its_job(small_run: RunDirectory) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    (small_run.all_logs / "slurm-7.out").write_text("module loaded\n")
    found = Reader(small_run, lambda: JobStatus("pending", "Priority")).read()
    assert (found.state, found.reason, found.job) == ("pending", "Priority", "slurm job 7")
    assert found.log == ["module loaded"]


def test_a_running_run(small_run: RunDirectory, begin: Do, write: Do, beat: Do) -> None:
    reader = Reader(small_run)
    with lease.acquire(small_run.lease):
        begin()
        write(event("started", 0, total_steps=100), records(1, 10), evaluation(10, 0.75))
        beat(0)
        beat(1, waiting=True, step=11)
        small_run.logs(1).log(1).write_text("first\n\x1b[31msecond\x1b[0m\n")
        found = reader.read(rank=1)
        assert (found.state, found.step, found.total_steps) == ("running", 10, 100)
        assert (found.loss, found.top1, found.time_left_s) == (2.8, 0.75, 180.0)
        assert (found.attempt, found.num_workers) == (1, 2)
        assert found.last_beat_s is not None
        assert found.last_beat_s < 60
        assert [(one.rank, one.step, one.note) for one in found.workers] == [(0, 10, ""), (1, 11, "waits")]
        assert (found.log, found.ranks) == (["first", "second"], [1])
        beat(0, "save", 11)
        assert reader.read().state == "saving"


@pytest.mark.parametrize(
    "told",
    [event("indexing", 0, text="indexing images: 40%"), event("stage", 0, begins="indexing images: 40%")],
    ids=["indexing", "stage"],
)
def test_what_the_start_of_an_attempt_does_is_its_reason(
    small_run: RunDirectory, begin: Do, write: Do, told: dict[str, Any]
) -> None:
    with lease.acquire(small_run.lease):
        begin()
        write(told)
        found = Reader(small_run).read()
    assert (found.state, found.reason) == ("starting", "indexing images: 40%")


def test_a_killed_run(small_run: RunDirectory, begin: Do, write: Do, beat: Do) -> None:
    begin()
    write(event("started", 0), records(1, 10))
    beat(0)
    found = Reader(small_run).read()
    assert found.state == "failed"
    assert "attempt 1 has no recorded end" in found.reason
    assert found.time_left_s is None
    assert [one.note for one in found.workers] == ["gone"]
    assert found.attempts[0].endswith("no end recorded")


def test_attempts_and_failures_are_marks(small_run: RunDirectory, begin: Do) -> None:
    small_run.end_attempt(begin(), 76, "WorkerLost: worker 1 on n1", 23)
    small_run.begin_attempt({"workers": 1, "from_step": 20})
    found = Reader(small_run).read()
    assert [(mark.step, mark.sign) for mark in found.marks] == [(23, "x"), (20, "2")]
    assert found.marks[0].text == "step 23: WorkerLost: worker 1 on n1"
    assert "on 1 worker" in found.attempts[1]


def test_workers_that_need_attention_come_first(small_run: RunDirectory, begin: Do, write: Do, beat: Do) -> None:
    begin()
    write(event("started", 0), event("straggler", 8, rank=2, local_step_time_s=0.5, others_s=0.1))
    for rank in range(4):
        beat(rank, hung=rank == 3)
    old = time.time() - 100
    os.utime(small_run.logs(1).heartbeat(1), (old, old))
    with lease.acquire(small_run.lease):
        found = Reader(small_run).read()
    notes = {one.rank: one.note for one in found.workers}
    assert notes == {
        1: "silent for 100 s",
        2: "straggler: 0.5 s a step, others 0.1 s",
        3: "hung",
        0: "",
    }
    assert [one.rank for one in found.workers] == [1, 2, 3, 0]


def test_a_heartbeat_that_is_being_written_keeps_its_last_content(small_run: RunDirectory, begin: Do, beat: Do) -> None:
    begin()
    beat(0)
    reader = Reader(small_run)
    assert len(reader.read().workers) == 1
    file = small_run.logs(1).heartbeat(0)
    file.write_bytes(b'{"rank": 0, "host"')
    os.utime(file, (1.0, 1.0))
    assert [one.host for one in reader.read().workers] == ["n1"]


@pytest.mark.parametrize("name", ["whole", "stopped"])
def test_a_run_of_version_0_1(tmp_path: Path, name: str) -> None:
    shutil.copytree(FIXTURE / name, tmp_path / name)
    found = Reader(RunDirectory(tmp_path, name)).read()
    told = read_status(RunDirectory(tmp_path, name), None)
    assert (found.state, found.step, found.total_steps) == (told.state, told.step, told.total_steps)
    assert len(found.train["loss"]) >= 4
    assert found.spent["compute"] > 0
    assert found.log


def test_files_that_cannot_be_read_are_left_out(small_run: RunDirectory, begin: Do, write: Do) -> None:
    begin()
    write(records(1, 2))
    small_run.finished_file.write_text("{torn")
    with small_run.attempts_file.open("a") as file:
        file.write("null\n")
    small_run.config.write_text("schema: [")
    (small_run.logs(1).path / "heartbeat").write_text("a file, not a folder")
    found = Reader(small_run).read()
    assert (found.state, found.workers) == ("finished", [])


def test_a_folder_that_cannot_be_read_is_a_reason(small_run: RunDirectory, begin: Do) -> None:
    begin()
    small_run.metrics.mkdir()
    found = Reader(small_run).read()
    assert found.state == "unknown"
    assert "is a folder. Allowed: a regular file" in found.reason


def test_only_what_has_changed_is_read_again(
    small_run: RunDirectory, begin: Do, beat: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin()
    beat(0)
    reader = Reader(small_run)
    first = reader.read()
    monkeypatch.setattr(RunDirectory, "attempts", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(readers, "read_json", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(readers, "last_lines", lambda *_: pytest.fail("read again"))
    assert reader.read().attempts == first.attempts


def test_a_holder_elsewhere_that_renews_its_lease_is_alive_by_any_clock(
    small_run: RunDirectory, begin: Do, write: Do
) -> None:
    begin()
    small_run.lease.mkdir()
    with lease.acquire(small_run.path / "other"):
        content = json.loads((small_run.path / "other" / "00000001.json").read_text())
    file = small_run.lease / "00000001.json"
    file.write_text(json.dumps({**content, "host": "n7"}))
    reader = Reader(small_run)
    for renewed, state in ((1000.0, "unknown"), (1005.0, "starting"), (1010.0, "starting")):
        os.utime(file, (renewed, renewed))
        assert reader.read().state == state


def test_the_limits_hold(small_run: RunDirectory, begin: Do, write: Do, beat: Do) -> None:
    begin()
    write(records(1, 100))
    for rank in range(5):
        beat(rank)
    small_run.logs(1).log(0).write_text("line\n" * 100)
    found = Reader(small_run, limits=Limits(points=10, workers=3, log_lines=7)).read()
    assert (len(found.train["step"]), len(found.workers), len(found.log)) == (11, 3, 7)
    assert isinstance(found, Snapshot)

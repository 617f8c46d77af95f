"""submissions.jsonl: ids in the form of their scheduler, and nothing because of a record of somebody else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.run import submissions
from launcher.run.directory import RunDirectory

GOOD: list[dict[str, Any]] = [
    {"place": "slurm", "id": "4711"},
    {"place": "slurm", "id": "4711_12"},
    {"place": "kubernetes", "id": "rn50-v1-5-8e478a", "details": {"namespace": "team-a"}},
    {"place": "kubernetes", "id": "a", "details": {"namespace": "1a", "context": "arn:aws:eks:eu-1:12:cluster/prod"}},
    {"place": "kubernetes", "id": "a", "details": {"context": "me@the cluster"}},
    {"place": "ray", "id": "raysubmit_8Hn2bK6CkgBiTzLW", "details": {"address": "http://127.0.0.1:8265"}},
    {"place": "ray", "id": "my.job-1"},
]
BAD: list[dict[str, Any]] = [
    {"place": "slurm", "id": "--me"},
    {"place": "slurm", "id": "-1"},
    {"place": "slurm", "id": ""},
    {"place": "slurm", "id": "1;ls"},
    {"place": "slurm", "id": "4711\n"},
    {"place": "slurm", "id": "1,2"},
    {"place": "slurm", "id": "\u0661\u0662"},
    {"place": "slurm", "id": 4711},
    {"place": "pbs", "id": "4711"},
    {"place": "kubernetes", "id": "--kubeconfig=/tmp/k"},
    {"place": "kubernetes", "id": "Upper"},
    {"place": "kubernetes", "id": "a", "details": {"namespace": "--kubeconfig=/tmp/k"}},
    {"place": "kubernetes", "id": "a", "details": {"context": "--kubeconfig=/tmp/k"}},
    {"place": "kubernetes", "id": "a", "details": {"context": "a\nb"}},
    {"place": "kubernetes", "id": "a", "details": {"context": None}},
    {"place": "ray", "id": "--address=x"},
    {"place": "ray", "id": "a/../b"},
    {"place": "ray", "id": "a", "details": {"address": "--x"}},
    {"place": "ray", "id": "a", "details": {"address": "file:///etc/passwd"}},
    {"place": "ray", "id": "a", "details": {"address": "http://a b"}},
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "run")
    directory.create()
    return directory


def write(run: RunDirectory, *records: dict[str, Any]) -> None:
    lines = [json.dumps({"time": "2026-01-01T00:00:00+00:00", "host": "login1"} | record) for record in records]
    run.submissions.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("record", GOOD, ids=str)
def test_ids_that_schedulers_give_are_read(run: RunDirectory, record: dict[str, Any]) -> None:
    write(run, record)
    found = submissions.newest(run)
    assert found is not None
    assert (found.place, found.id, found.details) == (record["place"], record["id"], record.get("details", {}))
    assert found.distrust == ""


@pytest.mark.parametrize("record", BAD, ids=str)
def test_an_id_that_no_scheduler_gives_is_a_line_that_cannot_be_read(
    run: RunDirectory, record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write(run, GOOD[0], record)
    found = submissions.newest(run)
    assert found is not None
    assert found.id == "4711"
    assert caplog.messages[0].startswith(f"{run.submissions}: ignored 1 line that cannot be read; line 2 begins with")


def test_what_is_recorded_is_read_again(run: RunDirectory) -> None:
    made = submissions.now("slurm", "7")
    submissions.record(run, made)
    assert submissions.newest(run) == made
    assert "distrust" not in run.submissions.read_text()


@pytest.mark.parametrize("name", ["", "submissions.jsonl", "lease"])
def test_nothing_is_sent_because_of_a_directory_that_everybody_may_write_to(run: RunDirectory, name: str) -> None:
    write(run, {**GOOD[0], "distrust": ""})
    run.lease.mkdir()
    assert submissions.distrust(run) == ""
    path = run.path / name
    path.chmod(0o777)
    found = submissions.newest(run)
    assert found is not None
    assert found.distrust == f"everybody may write to {path}. Allowed: after `chmod o-w`, if its content is yours"
    with pytest.raises(UsageError, match="nothing is stopped"):
        submissions.refuse_distrusted(run)
    path.chmod(0o775)  # a project folder: its group may write
    submissions.refuse_distrusted(run)


def test_a_sticky_folder_is_like_tmp(run: RunDirectory) -> None:
    run.path.chmod(0o1777)
    assert submissions.distrust(run) == ""


def test_nothing_is_sent_because_of_a_record_of_another_user(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, GOOD[0])
    owner = run.path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert submissions.distrust(run) == ""  # the file system gives this process's files the same owner: root on NFS
    run.path.chmod(0o555)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError()))
    assert submissions.distrust(run).startswith(f"{run.path} belongs to user ")

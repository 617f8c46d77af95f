"""The run directory: all paths, atomic writes, attempts."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.run.directory import RunDirectory
from launcher.run.environment import environment
from launcher.run.lease import acquire
from launcher.run.record_types import Attempt, Fatal
from resnet_dist.errors import StorageError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "storage", "rn50")
    directory.create()
    return directory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_paths(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "rn50")
    places = {
        run.path: "", run.config: "config.yaml", run.environment: "environment.json",
        run.attempts_file: "attempts.jsonl", run.metrics: "metrics.jsonl", run.tensorboard: "tensorboard",
        run.checkpoints: "checkpoints", run.index: "index", run.submissions: "submissions.jsonl",
        run.skips: "skips.json",
        run.profile(1): "profiles/attempt-1", run.finished_file: "FINISHED", run.fatal_file: "FATAL",
        run.logs(1).log(0): "logs/attempt-1/rank-0.log", run.logs(1).heartbeat(0): "logs/attempt-1/heartbeat/rank-0",
        run.logs(1).stack(0): "logs/attempt-1/stacks/rank-0.txt",
        run.incident_summary(1): "incidents/attempt-1/summary.txt",
    }  # fmt: skip
    assert {path: str(path) for path in places} == {p: str(tmp_path / "rn50" / name) for p, name in places.items()}


def test_create_makes_the_folders_and_a_second_create_changes_nothing(run: RunDirectory) -> None:
    run.write_config("seed: 1\n")
    run.create()
    assert names(run.path) == ["checkpoints", "config.yaml", "index", "logs", "tensorboard"]
    assert run.config.read_text() == "seed: 1\n"


def test_attempts_are_numbered_from_one_and_keep_their_facts(run: RunDirectory) -> None:
    assert run.attempts() == []
    assert run.begin_attempt({"workers": 4}) == 1
    run.end_attempt(1, exit_code=75, cause="preempted", last_step=42)
    assert run.begin_attempt() == 2
    first, second = run.attempts()
    assert dataclasses.replace(first, started="", ended=None) == Attempt(
        1, "", {"workers": 4}, exit_code=75, cause="preempted", last_step=42
    )
    assert first.ended is not None
    assert dataclasses.replace(second, started="") == Attempt(2, "", {})
    assert names(run.path / "logs") == ["attempt-1", "attempt-2"]


def test_an_attempt_can_begin_in_a_run_directory_that_was_not_created(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path, "new").begin_attempt() == 1


def test_an_attempt_number_that_another_launcher_has_taken_is_not_reused(run: RunDirectory) -> None:
    run.logs(1).path.mkdir()  # the other launcher has created its folder, and not written its line yet
    assert run.begin_attempt() == 2


@pytest.mark.parametrize("size", [1, 5, 40])
def test_an_incomplete_line_is_ignored(run: RunDirectory, size: int) -> None:
    run.begin_attempt()
    with run.attempts_file.open("ab") as file:
        file.write(b'{"event": "ended", "attempt": 1, "exit_code": 75}'[:size])
    assert [attempt.number for attempt in run.attempts()] == [1]
    assert run.begin_attempt() == 2
    assert [attempt.number for attempt in run.attempts()] == [1, 2]


def test_a_finished_run_keeps_its_summary(run: RunDirectory) -> None:
    assert not run.is_finished()
    assert run.summary() is None
    run.mark_finished({"step": 100, "top1": 0.76})
    assert run.is_finished()
    summary = run.summary()
    assert summary is not None
    assert summary.pop("time")
    assert summary == {"step": 100, "top1": 0.76}


def test_a_number_that_is_not_finite_is_recorded_as_null(run: RunDirectory) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    run.end_attempt(run.begin_attempt({"top1": float("nan")}), 0, "finished", 100, {"loss": -float("inf")})
    [attempt] = run.attempts()
    assert (attempt.facts, attempt.end_facts) == ({"top1": None}, {"loss": None})
    run.mark_finished({"top1": float("nan"), "loss": float("inf"), "step": 100})
    finished = json.loads(run.finished_file.read_text(), parse_constant=refuse)
    assert (finished["top1"], finished["loss"], finished["step"]) == (None, None, 100)
    for line in run.attempts_file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_fatal_failure_keeps_its_code_and_message(run: RunDirectory) -> None:
    assert run.fatal() is None
    run.mark_fatal(79, "training diverged")
    fatal = run.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.message) == (79, "training diverged")


def test_a_new_attempt_removes_finished_and_fatal(run: RunDirectory) -> None:
    run.mark_fatal(78, "config invalid")
    run.mark_finished({})
    run.begin_attempt()
    assert run.fatal() is None
    assert not run.is_finished()


FATALS = [
    *(b"{", b"", b"null", b"[]", b"\0\xff", b'{"exit_code": 7}'),
    b'{"exit_code": "76", "message": "m", "time": "t"}',
    b'{"exit_code": 3, "message": "m", "time": "t"}',
]


@pytest.mark.parametrize("content", FATALS)
def test_a_fatal_that_cannot_be_read_is_no_reason_and_is_set_aside_by_the_next_attempt(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    run.fatal_file.write_bytes(content)
    assert run.has_failed()
    assert (run.fatal(), run.fatal()) == (None, None)
    assert caplog.messages == [f"{run.fatal_file}: ignored, as its content cannot be read"]
    run.begin_attempt()
    assert not run.has_failed()
    assert (run.path / "FATAL.unreadable").read_bytes() == content


def test_fields_of_a_newer_version_are_ignored(run: RunDirectory) -> None:
    run.fatal_file.write_text(json.dumps({"exit_code": 76, "message": "m", "time": "t", "hosts": ["n1"]}))
    assert run.fatal() == Fatal(76, "m", "t")


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"step": "100"}', b'{"top1": "high"}', b"\xff"])
def test_a_finished_run_whose_summary_cannot_be_read_is_finished(run: RunDirectory, content: bytes) -> None:
    run.finished_file.write_bytes(content)
    assert run.is_finished()
    assert run.summary() == {}
    run.begin_attempt()
    assert not run.is_finished()
    assert (run.path / "FINISHED.unreadable").read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": None}, {"attempt": "2"}, {"attempt": 0}, {"event": None}, {"event": "paused"},
        {"time": "yesterday"}, {"time": "2026-01-01T00:00:00"}, {"time": 3}, {"facts": None},
        {"facts": {"workers": "many"}}, {"command_began": "earlier"}, {"command_began": "2026-01-01T00:00:00"},
        {"facts": {"excluded": [1]}},
    ],
)  # fmt: skip
def test_a_line_that_no_launcher_writes_is_ignored_and_named_once(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    run.begin_attempt({"workers": 4})
    line = {"event": "started", "attempt": 2, "time": "2026-01-01T00:00:00+00:00", "facts": {}} | change
    with run.attempts_file.open("a") as file:
        file.write(json.dumps(line) + "\n")
    for _ in range(2):
        assert [attempt.number for attempt in run.attempts()] == [1]
    [message] = caplog.messages
    assert message.startswith(f"{run.attempts_file}: ignored 1 line that cannot be read; line 2 begins with '{{")
    assert run.begin_attempt() == 2


@pytest.mark.parametrize("missing", ["event", "attempt", "time", "exit_code", "cause"])
def test_an_end_without_one_of_its_keys_is_ignored(run: RunDirectory, missing: str) -> None:
    run.end_attempt(run.begin_attempt(), 76, "why", 4)
    first, last = run.attempts_file.read_text().splitlines()
    content = json.loads(last)
    del content[missing]
    run.attempts_file.write_text(f"{first}\n{json.dumps(content)}\n")
    assert [(attempt.number, attempt.ended) for attempt in run.attempts()] == [(1, None)]


@pytest.mark.parametrize("name", ["FATAL", "FINISHED", "attempts.jsonl"])
def test_a_named_pipe_is_refused_at_once(run: RunDirectory, name: str) -> None:
    os.mkfifo(run.path / name)
    with pytest.raises(StorageError, match=rf"{name}: is a named pipe\. Allowed: a regular file"):
        run.begin_attempt()


def test_an_attempt_knows_the_session_and_the_submission_that_started_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_SUBMISSION", "job-1")
    with acquire(run.lease):
        run.begin_attempt()
        run.begin_attempt()
    monkeypatch.delenv("LAUNCHER_SUBMISSION")
    with acquire(run.lease, command_began="2026-01-01T00:00:00+00:00"):
        run.begin_attempt()
    first, second, third = run.attempts()
    assert first.session == second.session != third.session != ""
    assert (first.submission, second.submission, third.submission) == ("job-1", "job-1", "")
    assert (second.command_began, third.command_began) == ("", "2026-01-01T00:00:00+00:00")


def test_a_link_of_this_user_to_another_disk_is_allowed(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(tmp_path / "disk")
    run.create()
    run.check_links()


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_config("old")
    before = names(run.path)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"config\.yaml: the disk is full"):
        run.write_config("new")
    assert run.config.read_text() == "old"
    assert names(run.path) == before


def test_a_storage_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be created: Not a directory\. Allowed"):
        RunDirectory(tmp_path / "storage", "rn50").create()


def test_the_environment_is_recorded_without_secrets(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for secret in ("RAY_AUTH_TOKEN", "NCCL_TOKEN", "GLOO_PASSWORD", "OMP_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(secret, "hush-hush")
    run.write_environment(environment())
    text = run.environment.read_text()
    facts = json.loads(text)
    assert "hush-hush" not in text
    assert facts["variables"]["NCCL_DEBUG"] == "INFO"
    assert facts["variables"]["OMP_NUM_THREADS"] == "3"
    assert all(name.startswith(("NCCL_", "GLOO_", "OMP_")) for name in facts["variables"])
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "torchvision"} <= facts["packages"].keys()
    assert facts["num_cpus"] >= facts["num_cpus_allowed"] >= 1


def test_the_environment_names_the_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment()["git"] == {"commit": commit, "changed": False}
    (tmp_path / "file").write_text("two")
    assert environment()["git"] == {"commit": commit, "changed": True}


def test_the_environment_is_recorded_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["git"] is None


def test_reading_a_run_directory_imports_no_torch() -> None:
    code = "import sys, launcher.run.directory, resnet_dist.checkpoint.format; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_does_not_start_in_a_directory_with_a_link_of_another_user(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(tmp_path)
    if os.geteuid() == 0:
        os.lchown(run.checkpoints, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError()))
    problem = r"is a link that belongs to user [0-9]+\. Allowed: a link of your own"
    with pytest.raises(StorageError, match=problem) as caught:
        run.create()
    assert caught.value.path == str(run.checkpoints)

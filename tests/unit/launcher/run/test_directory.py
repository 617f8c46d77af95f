"""The run directory: all paths, atomic writes, attempts."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.run.directory import Attempt, RunDirectory
from launcher.run.environment import environment
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


def test_a_file_that_is_not_json_is_a_storage_error(run: RunDirectory) -> None:
    run.fatal_file.write_text("{")
    with pytest.raises(StorageError, match=r"FATAL: cannot be read .* move it away to continue"):
        run.fatal()


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
    with pytest.raises(StorageError, match="Not a directory"):
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

"""The storage of a run: refused writes are refused by the system itself, where it can be made to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.checks import storage
from launcher.checks.finding import Finding
from launcher.checks.host_requirements import HostRequirements
from launcher.checks.suite import host_checks
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.schema import ModelRecipe


def run(storage: Path) -> RunDirectory:
    return RunDirectory(storage, "run")


def space(storage_folder: Path, model: ModelRecipe | None = None) -> Finding:
    """Of a run that keeps three checkpoints."""
    return storage.space(storage_folder, *storage.needed_bytes(run(storage_folder), model, keep=3), keep=3)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    finding = storage.writable(run(tmp_path))
    assert finding.status == "pass"
    assert finding.found.endswith("(the run creates run there)")
    assert finding.found.count(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_the_storage_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    absent = run(tmp_path / "runs")
    assert storage.writable(absent).status == "pass"
    assert storage.clock(absent.storage).status == "skipped"
    for finding in (storage.writable(run(Path("/no-such-mount/runs"))), storage.writable(absent, nodes=8)):
        assert finding.status == "warn"
        assert "mount it" in finding.advice


def test_a_small_model_needs_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**8)
    assert space(tmp_path, ModelRecipe(name="resnet20")).status == "pass"
    assert space(tmp_path, ModelRecipe(name="resnet20", width=16.0)).status != "pass"


def test_a_storage_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert storage.writable(run(tmp_path / "file" / "runs")).status == "fail"


def test_a_file_system_that_refuses_fails() -> None:
    finding = storage.writable(run(Path("/proc")))
    assert finding.status == "fail"
    assert "/proc" in finding.found


def test_a_file_system_without_hard_links_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(tmp_path))

    monkeypatch.setattr(os, "link", refuse)
    assert storage.writable(run(tmp_path)).status == "fail"
    assert list(tmp_path.iterdir()) == []


def test_the_content_read_must_be_the_content_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"other")
    finding = storage.writable(run(tmp_path))
    assert finding.status == "fail"
    assert "differs from the content written" in finding.found


@pytest.mark.parametrize(("ahead_s", "status"), [(0, "pass"), (-100, "warn"), (100, "warn")])
def test_the_clock_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int, status: str) -> None:
    if ahead_s:
        real = time.time
        monkeypatch.setattr(storage.time, "time", lambda: real() - ahead_s)
    finding = storage.clock(tmp_path)
    assert finding.status == status
    if ahead_s:
        assert ("ahead of" if ahead_s > 0 else "behind") in finding.found
    assert list(tmp_path.iterdir()) == []


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))


@pytest.mark.parametrize(("count", "status"), [(10**8, "fail"), (10**9, "warn"), (10**10, "pass")])
def test_a_new_run_needs_space_for_checkpoints_of_the_largest_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, status: str
) -> None:
    free(monkeypatch, count)
    assert space(tmp_path).status == status


def test_a_run_with_checkpoints_is_measured_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path).checkpoints / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    for count, status in ((999, "fail"), (2999, "warn"), (3000, "pass")):  # one is there, three more are to come
        free(monkeypatch, count)
        assert space(tmp_path).status == status


@pytest.mark.parametrize(("left", "status"), [(999, "fail"), (99_999, "warn"), (100_000, "pass")])
def test_inodes(left: int, status: str) -> None:
    disk = os.statvfs_result((1, 1, 1, 1, 1, 10**6, left, left, 0, 255))
    assert storage.inodes(disk).status == status


def test_a_file_system_without_a_limit_of_inodes() -> None:
    disk = os.statvfs_result((1, 1, 1, 1, 1, 0, 0, 0, 0, 255))
    assert storage.inodes(disk).status == "pass"


QUOTA = """Disk quotas for user ann (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home   {used}*       0 10000000       0   90000       0       0       0
      /dev/sdb      20       0        0       0       2       0       0       0
"""


@pytest.mark.parametrize(("used", "status"), [(9_900_000, "warn"), (1_000_000, "pass")])
def test_the_quota_command_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, status: str) -> None:
    command = tmp_path / "quota"
    command.write_text(f"#!/bin/sh\ncat <<END\n{QUOTA.format(used=used)}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = storage.quota(needed=10**9)
    assert finding.status == status
    assert ("server:/home" in finding.found) is (status == "warn")


def test_without_a_quota_command_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert storage.quota(needed=10**9).status == "skipped"


def test_without_a_config_storage_and_data_are_not_checked() -> None:
    checks = [check for check in host_checks(None, HostRequirements(), {}) if check.name in ("storage", "data")]
    assert [check.run().status for check in checks] == ["skipped", "skipped"]  # type: ignore[union-attr]

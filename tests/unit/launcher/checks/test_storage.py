"""The storage of a run: refused writes are refused by the system itself, where it can be made to."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from launcher.checks import storage
from launcher.checks.needs import Needs
from launcher.run.directory import RunDirectory
from resnet_dist.models import MODELS


def needs(folder: Path, keep: int = 3) -> Needs:
    return Needs(storage=folder, run=RunDirectory(folder, "run"), keep=keep)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    finding = storage.writable(needs(tmp_path))
    assert finding.status == "pass"
    assert f"{tmp_path / 'run'} will be made" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_the_storage_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    asked = needs(tmp_path / "runs")
    assert storage.writable(asked).status == "pass"
    assert storage.clock(asked).status == "skipped"
    for unmounted in (needs(Path("/no-such-mount/runs")), dataclasses.replace(asked, nodes=8)):
        finding = storage.writable(unmounted)
        assert finding.status == "warn"
        assert "mount it" in finding.advice


@pytest.mark.parametrize("name", MODELS)
def test_the_models_are_as_large_as_is_said(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name](1000)
    assert storage.PARAMETERS[name] == sum(parameter.numel() for parameter in model.parameters())


def test_a_small_model_wants_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**8)
    assert storage.space(dataclasses.replace(needs(tmp_path), model="resnet20")).status == "pass"


def test_a_storage_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert storage.writable(needs(tmp_path / "file" / "runs")).status == "fail"


def test_a_file_system_that_refuses_fails() -> None:
    finding = storage.writable(needs(Path("/proc")))
    assert finding.status == "fail"
    assert "/proc" in finding.found


def test_a_file_system_without_hard_links_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(tmp_path))

    monkeypatch.setattr(os, "link", refuse)
    assert storage.writable(needs(tmp_path)).status == "fail"
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"other")
    finding = storage.writable(needs(tmp_path))
    assert finding.status == "fail"
    assert "not what was written" in finding.found


@pytest.mark.parametrize(("ahead_s", "status"), [(0, "pass"), (-100, "warn"), (100, "warn")])
def test_the_clock_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int, status: str) -> None:
    if ahead_s:
        real = time.time
        monkeypatch.setattr(storage.time, "time", lambda: real() - ahead_s)
    finding = storage.clock(needs(tmp_path))
    assert finding.status == status
    if ahead_s:
        assert ("ahead of" if ahead_s > 0 else "behind") in finding.found
    assert list(tmp_path.iterdir()) == []


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))


@pytest.mark.parametrize(("count", "status"), [(10**8, "fail"), (10**9, "warn"), (10**10, "pass")])
def test_a_new_run_must_have_room_for_the_largest_models_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, status: str
) -> None:
    free(monkeypatch, count)
    assert storage.space(needs(tmp_path)).status == status


def test_a_run_with_checkpoints_is_measured_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = needs(tmp_path)
    assert asked.run is not None
    folder = asked.run.checkpoints / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    for count, status in ((999, "fail"), (2999, "warn"), (3000, "pass")):  # one is there, three more are to come
        free(monkeypatch, count)
        assert storage.space(asked).status == status


@pytest.mark.parametrize(("left", "status"), [(999, "fail"), (99_999, "warn"), (100_000, "pass")])
def test_inodes(tmp_path: Path, left: int, status: str) -> None:
    disk = os.statvfs_result((1, 1, 1, 1, 1, 10**6, left, left, 0, 255))
    assert storage.inodes(needs(tmp_path), disk).status == status


def test_a_file_system_without_a_limit_of_inodes(tmp_path: Path) -> None:
    disk = os.statvfs_result((1, 1, 1, 1, 1, 0, 0, 0, 0, 255))
    assert storage.inodes(needs(tmp_path), disk).status == "pass"
    assert storage.inodes(needs(tmp_path)).name == "inodes"


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
    finding = storage.quota(needs(tmp_path))
    assert finding.status == status
    assert ("server:/home" in finding.found) is (status == "warn")


def test_without_a_quota_command_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert storage.quota(needs(tmp_path)).status == "skipped"


def test_without_a_config_there_is_no_storage_to_look_at() -> None:
    assert {check.run().status for check in storage.checks(Needs())} == {"skipped"}  # type: ignore[union-attr]

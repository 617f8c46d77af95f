"""Limits of the operating system, lowered for real where a test may."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.checks import system
from launcher.checks.host_requirements import HostRequirements


@pytest.fixture
def limit_open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lower(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.parametrize(("soft", "status"), [(200, "fail"), (512, "warn"), (1024, "pass")])
def test_open_files(limit_open_files: None, soft: int, status: str) -> None:
    lower(soft)
    finding = system.open_files(several_ray_nodes=False)
    assert finding.status == status
    assert f"{soft:,} allowed" in finding.found


def test_several_ray_nodes_need_more_open_files(limit_open_files: None) -> None:
    lower(1024)
    finding = system.open_files(several_ray_nodes=True)
    assert finding.status == "warn"
    assert "ulimit -n" in finding.advice


def test_a_limit_that_only_the_administrator_can_raise_is_not_advised_to_be_set(limit_open_files: None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    finding = system.open_files(several_ray_nodes=True)
    if hard < 65_536:  # else it is enough
        assert "ulimit -n" not in finding.advice
        assert f"more than {hard:,} requires an administrator" in finding.advice


def test_missing_cpus_are_a_warning() -> None:
    assert system.cpus(1).status == "pass"
    assert system.cpus(100_000).status == "warn"


def test_locked_memory_matters_where_rdma_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.locked_memory(8, tmp_path).status == "skipped"
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    assert system.locked_memory(8, tmp_path).status == "fail"
    assert system.locked_memory(0, tmp_path).status == "skipped"
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)
    assert system.locked_memory(8, tmp_path).status == "pass"


def disk(free: int, size: int = 2**36) -> os.statvfs_result:
    return os.statvfs_result((1, 1, size, free, free, 0, 0, 0, 0, 255))


@pytest.mark.parametrize(
    ("free", "required", "status"),
    [
        (2**25, HostRequirements(workers=1, gpus=1), "fail"),  # below a container's default
        (2**29, HostRequirements(workers=1, gpus=1), "warn"),
        (2**30, HostRequirements(workers=1, gpus=1), "pass"),
        (2**26, HostRequirements(workers=1, ray=True), "warn"),
        (0, HostRequirements(workers=1), "pass"),  # one process on a CPU does not use it
        (0, HostRequirements(workers=0, ray=True), "skipped"),
    ],
)
def test_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, required: HostRequirements, status: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: disk(free))
    assert system.shared_memory(required, tmp_path).status == status
    assert system.shared_memory(required, tmp_path / "none").status == "skipped"

"""`launcher doctor`: its table, its JSON and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.arguments import Parser
from launcher.checks.finding import Finding, failed, passed, skipped, warned
from launcher.checks.host_requirements import HostRequirements, requirements_of
from launcher.commands import doctor
from launcher.config import load as configs
from launcher.errors import UsageError

CLUSTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLUSTER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    content = {
        "schema": 1, "name": "run", "storage": str(tmp_path), "duration": "1 steps", "place": "local",
        "batch": {"size": 4}, "model": {"name": "resnet20", "num_classes": 2},
        "data": {"root": str(tmp_path), "source": "mine:index"}, "schedule": {"peak_lr": 0.1},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def start(*arguments: str) -> tuple[int, str]:
        parser = Parser()
        doctor.add_parser(parser.add_subparsers(parser_class=Parser))
        given = parser.parse_args(["doctor", *arguments])
        return int(given.run(given)), capsys.readouterr().out

    return start


def test_this_machine_can_be_checked_without_a_config(run: Run) -> None:
    code, text = run("--quick")
    assert code == 0
    assert "packages" in text
    assert text.splitlines()[-1].endswith("0 fail")


def test_a_run_that_fits_passes(run: Run, config_file: Path) -> None:
    code, text = run("--quick", "--json", str(config_file))
    report = json.loads(text)
    assert (code, report["exit_code"]) == (0, 0)
    names = {finding["name"] for finding in report["findings"]}
    expected = {"config", "packages", "open files", "/dev/shm", "ports", "proxies", "storage", "inodes", "quota"}
    assert expected | {"variables", "driver", "GPUs", "data", "host name", "Ray token", "free disk"} <= names
    assert all(finding["advice"] for finding in report["findings"] if finding["status"] in ("warn", "fail"))


def test_a_check_that_fails_gives_69(run: Run, config_file: Path) -> None:
    code, text = run("--quick", str(config_file), "resources.gpus_per_worker=1", "workers=64", "batch.size=64")
    assert code == 69
    assert "GPUs visible, 64 required" in text
    assert "-> request this number per node" in text


def test_a_wrong_config_gives_78_and_the_machine_is_checked_anyway(run: Run, config_file: Path) -> None:
    code, text = run("--quick", "--json", str(config_file), "batch.size=many")
    report = json.loads(text)
    assert code == report["exit_code"] == 78
    assert "batch.size" in report["findings"][0]["found"]
    assert "open files" in {finding["name"] for finding in report["findings"]}


def test_a_config_that_is_not_there_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        run(str(tmp_path / "none.yaml"))


def test_conflicts_with_a_profile_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("kind: slurm\nnetwork: {environment: {NCCL_IB_HCA: mlx5_0}}\n")
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5_9")
    code, text = run("--quick", "--profile", str(profile))
    assert code == 0
    assert "NCCL_IB_HCA is 'mlx5_9' in your environment and 'mlx5_0' in the profile" in " ".join(text.split())
    with pytest.raises(UsageError, match="--profile"):
        run("--quick", "--profile", str(tmp_path / "none.yaml"))


def test_the_table_is_aligned_and_shows_the_advice() -> None:
    findings = [
        passed("disk", "9 GiB free"),
        warned("host name", "n1 is 127.0.0.1", "give it an address").on("n1"),
        failed("ports", "taken", "end what listens there"),
        skipped("GPUs", "none asked"),
    ]
    assert list(doctor.lines(findings)) == [
        "pass     disk           9 GiB free",
        "warn     n1: host name  n1 is 127.0.0.1",
        "                        -> give it an address",
        "fail     ports          taken",
        "                        -> end what listens there",
        "skipped  GPUs           none asked",
        "",
        "1 pass, 1 skipped, 1 warn, 1 fail",
    ]


def test_long_findings_are_wrapped_below_themselves() -> None:
    *rows, _, _ = doctor.lines([Finding("disk", "pass", "word " * 55)])
    assert len(rows) == 3
    assert all(row.startswith(" " * len("pass     disk  ")) for row in rows[1:])


def test_the_requirements_of_a_run(config_file: Path) -> None:
    gpus = "resources.gpus_per_worker=1"
    eight = configs.load(config_file, ["workers=8", "cluster.nodes=2", gpus, "batch.size=8"])
    required = requirements_of(eight, {})
    assert (required.workers, required.gpus, required.cpus, required.nodes, required.ray) == (4, 4, 4, 2, False)
    assert requirements_of(eight, {"LOCAL_WORLD_SIZE": "3"}).workers == 3
    two = configs.load(config_file, ["place=local", "resources.local_workers=2"])
    assert (requirements_of(two, {}).workers, requirements_of(two, {}).supervised) == (2, True)
    assert not requirements_of(two, {"LOCAL_WORLD_SIZE": "3"}).supervised
    assert requirements_of(None) == HostRequirements()
    on_ray = configs.load(config_file, ["workers=8", "cluster.nodes=2", "place=ray", "batch.size=8"])
    driver = requirements_of(on_ray, {"RAY_ADDRESS": "n0:6379"})
    assert (driver.workers, driver.ray, driver.joins_a_cluster) == (0, True, True)
    assert driver.on_host(4, 0, 4).workers == 4

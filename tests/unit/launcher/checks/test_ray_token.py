"""Ray's token: whose it is and who could read it, with real files and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.checks import ray_token
from launcher.checks.finding import Finding
from launcher.checks.host_requirements import HostRequirements

JOINS = HostRequirements(ray=True, joins_a_cluster=True)
SECRET = "a2c4e6" * 10


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    folder = tmp_path / "ray"
    folder.mkdir(mode=0o700)
    file = folder / "auth_token"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)", *arguments]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it has replaced its parent's command line by its own
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def look(required: HostRequirements, **environment: str) -> list[Finding]:
    findings = list(ray_token.token(required, environment))
    assert not any(SECRET in finding.found + finding.advice for finding in findings)
    return findings


def test_a_token_that_is_the_owners_alone_passes(token_file: Path) -> None:
    (finding,) = look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file))
    assert finding.status == "pass"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_token_that_others_can_read_fails(token_file: Path, mode: int) -> None:
    token_file.chmod(mode)
    (finding,) = look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file))
    assert finding.status == "fail"
    assert f"{mode:04o}" in finding.found
    assert "chmod 600" in finding.advice


def test_a_folder_that_others_can_write_fails(token_file: Path) -> None:
    token_file.parent.chmod(0o777)
    assert look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file))[0].status == "fail"


def test_a_missing_token_fails_where_a_cluster_is_joined_and_is_made_where_none_is(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    assert look(JOINS, RAY_AUTH_TOKEN_PATH=nowhere)[0].status == "fail"
    assert look(HostRequirements(ray=True), RAY_AUTH_TOKEN_PATH=nowhere)[0].status == "pass"
    assert look(HostRequirements(), RAY_AUTH_TOKEN_PATH=nowhere)[0].status == "skipped"


def test_a_cluster_without_tokens_fails() -> None:
    assert look(JOINS, RAY_AUTH_MODE="disabled")[0].status == "fail"


def test_a_token_in_a_command_line_fails_and_names_the_process(
    token_file: Path, sleeper: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = sleeper(f"--token={SECRET}")
    (finding,) = look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file))
    assert finding.status == "fail"
    assert str(process.pid) in finding.found


def test_a_token_in_another_environment_is_warned_of(
    token_file: Path, sleeper: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = sleeper(RAY_AUTH_TOKEN=SECRET)
    (finding,) = look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file))
    assert finding.status == "warn"
    assert str(process.pid) in finding.found
    in_a_pod = look(JOINS, RAY_AUTH_TOKEN_PATH=str(token_file), KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert in_a_pod[0].status == "pass"


def test_a_token_that_is_given_as_a_variable_is_looked_for_too(
    sleeper: Callable[..., subprocess.Popen[bytes]],
) -> None:
    sleeper(f"--token={SECRET}")
    assert look(JOINS, RAY_AUTH_TOKEN=SECRET)[0].status == "fail"
    assert look(JOINS, RAY_AUTH_TOKEN="short")[0].status == "fail"

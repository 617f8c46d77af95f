"""launcher submit ray on a real head that wants a token: submitted, followed and ended as a user does it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.progress import last_recorded

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
TOKEN = "f" * 64
START_S = 120
Launcher = Callable[..., subprocess.CompletedProcess[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory with the cluster's token, as one copies it from the head."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir(mode=0o700)
    (folder / ".ray" / "auth_token").write_text(TOKEN)
    (folder / ".ray" / "auth_token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def variables(home: Path) -> dict[str, str]:
    ours = ("RAY_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"  # a job's `python` is the one that its nodes find
    return kept | {"HOME": str(home), "PATH": path}


@pytest.fixture(scope="module")
def address(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of its own, on ports of its own."""
    port, dashboard = free_port(), free_port()
    log = tmp_path_factory.mktemp("head") / "head.log"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=3"]
    command += [
        "--node-ip-address=127.0.0.1",
        f"--ray-client-server-port={free_port()}",
        "--object-store-memory=200000000",
    ]
    command += [f"--temp-dir={tmp_path_factory.mktemp('r', numbered=True)}", "--disable-usage-stats"]
    with log.open("w") as output:
        head = subprocess.Popen(
            command,
            env={**variables, "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "60"},  # Ray's own 3 s are too few
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while not listens(dashboard):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


@pytest.fixture
def run_launcher(variables: dict[str, str]) -> Launcher:
    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launcher", *arguments]
        return subprocess.run(command, env=variables | more, capture_output=True, text=True, check=False)

    return call


def test_a_run_is_submitted_followed_and_told_to_save(
    address: str, config_file: Path, run_launcher: Launcher, tmp_path: Path
) -> None:
    command = ["submit", "ray", str(config_file), "place=ray", "workers=1", "duration=100000 steps"]
    refused = run_launcher(*command, "--address", address, HOME=str(tmp_path / "nobody"), RAY_AUTH_MODE="disabled")
    assert refused.returncode == 69, refused.stderr
    assert "requires the cluster's token" in refused.stderr

    run = tmp_path / "runs" / "tiny"
    run.parent.mkdir()
    done = run_launcher(*command, "--address", address)
    assert done.returncode == 0, done.stderr
    assert f"at {address}" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    again = run_launcher(*command, "--address", address)
    assert again.returncode == 64
    assert "submitted already" in again.stderr or "this run is running" in again.stderr

    def status() -> dict[str, Any]:
        told = run_launcher("status", str(run), "--json")
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    seen = _until(status, lambda found: found["step"] or found["state"] not in ("pending", "starting", "running"))
    assert seen["state"] in ("running", "saving"), seen
    assert seen["total_steps"] == 100_000
    assert "rank 0 of 1" in run_launcher("logs", str(run)).stdout

    assert "asked to save and stop" in run_launcher("cancel", str(run)).stdout
    ended = _until(status, lambda found: found["state"] not in ("running", "saving", "starting"))
    assert (ended["state"], ended["exit_code"]) == ("stopped", 75)
    assert ended["step"] >= seen["step"] > 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{ended['step']:08d}"]


def test_a_job_has_the_losses_of_one_process(
    address: str,
    config_file: Path,
    variables: dict[str, str],
    assert_one_curve: Callable[[Path], None],
) -> None:
    job = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", address, "--working-dir"]
    job += [str(ROOT / "configs"), "--", sys.executable, "-m", "launcher.train", str(config_file)]
    submitted = subprocess.run(
        [*job, "place=ray", "workers=3"],
        env={**variables, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert_one_curve(config_file.parent / "runs" / "tiny")


def test_rays_own_stop_of_a_job_saves_at_the_next_step(
    address: str, config_file: Path, run_launcher: Launcher, variables: dict[str, str], tmp_path: Path
) -> None:
    overrides = ("place=ray", "workers=1", "duration=100000 steps")
    (tmp_path / "runs").mkdir()
    submitted = run_launcher("submit", "ray", str(config_file), *overrides, "--address", address)
    assert submitted.returncode == 0, submitted.stderr
    run = RunDirectory(tmp_path / "runs", "tiny")
    _until(lambda: {"steps": last_recorded(run.metrics, 0.0)}, lambda found: found["steps"] > 0)
    submission = submissions.newest(run)
    assert submission is not None
    command = [str(Path(sys.executable).with_name("ray")), "job", "stop", submission.id, "--address", address]
    stopped = subprocess.run(
        command, env={**variables, "RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 0, stopped.stderr
    [attempt] = run.attempts()
    assert (attempt.exit_code, attempt.cause) == (75, "stopped on request")
    assert attempt.last_step == last_recorded(run.metrics, 0.0)  # no step was lost
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{attempt.last_step:08d}"]


def test_too_few_nodes_end_a_run_in_time_with_what_is_missing(
    address: str, config_file: Path, run_launcher: Launcher, tmp_path: Path
) -> None:
    overrides = ("place=ray", "workers=4", "faults.start_timeout_s=2")
    submitted = run_launcher("submit", "ray", str(config_file), *overrides, "--address", address)
    assert submitted.returncode == 0, submitted.stderr
    run = RunDirectory(tmp_path / "runs", "tiny")
    _until(lambda: {"end": run.fatal()}, lambda found: found["end"] is not None)
    end = run.fatal()
    assert end is not None
    assert (end.exit_code, end.kind) == (69, "ClusterUnavailable")
    assert re.search(r"4 workers with 1 CPU each could not be placed within [0-9]+ s", end.message)
    assert re.search(r"The Ray cluster has \S+: capacity 3, [0-3] free", end.message)
    assert run.attempts() == []


def _until(ask: Callable[[], dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while not holds(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(1.0)
    return found

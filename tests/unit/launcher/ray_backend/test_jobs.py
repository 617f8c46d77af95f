"""Jobs on a Ray cluster, by Ray's own client against a job server of a few lines."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.errors import ClusterUnavailable, UsageError
from launcher.ray_backend import jobs as ray_jobs
from launcher.run import submissions
from launcher.run.directory import RunDirectory

pytest.importorskip("ray", reason="needs Ray")
TOKEN = "0123456789abcdef" * 4


@dataclass
class JobServer:
    """What the cluster knows, and what it was sent."""

    address: str = ""
    wants: str | None = None  # a token
    jobs: list[dict[str, Any]] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)
    packages: list[bytes] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def job(self, status: str, **more: Any) -> None:
        run = {"resnet-launcher/run": more.pop("run", "/runs/small")}
        known = {"type": "SUBMISSION", "submission_id": "job-1", "entrypoint": "", "metadata": run, "start_time": 1}
        self.jobs.append(known | {"status": status, "message": "", **more})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JobServer]:
    state = JobServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, code: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))

        def _is_let_in(self) -> bool:
            given = self.headers.get("Authorization", "")
            if state.wants is None or given == f"Bearer {state.wants}":
                return True
            self._answer(403 if given else 401, "no")
            return False

        def do_GET(self) -> None:
            if not self._is_let_in():
                return
            name = self.path.rstrip("/").rpartition("/")[2]
            if self.path == "/api/version":
                self._answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"})
            elif self.path == "/api/jobs/":
                self._answer(200, state.jobs)
            elif self.path.endswith("/logs"):
                self._answer(200, {"logs": "hello\n"})
            elif found := [job for job in state.jobs if job["submission_id"] == name]:
                self._answer(200, found[0])
            else:
                self._answer(404, "no such thing")

        def do_PUT(self) -> None:
            state.packages.append(self._body())
            self._answer(200, {})

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/stop"):
                state.stopped.append(self.path.split("/")[3])
                self._answer(200, {"stopped": state.jobs[0]["status"] == "RUNNING"})
            else:
                state.posted.append(json.loads(body))
                self._answer(200, {"job_id": "job-1", "submission_id": "job-1"})

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    monkeypatch.setenv("HOME", str(tmp_path))  # no token of the user's own
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://192.0.2.1:1")  # set back after the test
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def test_what_is_submitted_is_the_packed_folder_and_a_fixed_command(
    server: JobServer, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    assert cli.main(["submit", "ray", str(write_config()), "seed=7", "--address", server.address]) == 0
    [posted] = server.posted
    assert posted["entrypoint"] == "python -m launcher.train config.yaml"
    assert posted["metadata"] == {"resnet-launcher/run": str(tmp_path / "runs" / "small")}
    assert posted["runtime_env"]["excludes"] == ray_jobs.EXCLUDES
    assert posted["runtime_env"]["working_dir"].startswith("gcs://")
    [package] = server.packages
    archive = zipfile.ZipFile(io.BytesIO(package))
    assert archive.namelist() == ["config.yaml"]
    text = archive.read("config.yaml").decode()
    assert f"storage: {tmp_path / 'runs'}" in text
    assert "seed: 7" in text
    [submission] = submissions.read(RunDirectory(tmp_path / "runs", "small"))
    assert (submission.id, submission.details) == ("job-1", {"address": server.address})
    out = capsys.readouterr().out
    assert "working directory: 1 file, 0.00 MiB" in out
    assert f"ray job job-1 at {server.address}" in out


def test_a_dry_run_shows_the_files_and_asks_nobody(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "ray", str(write_config()), "--address", "http://192.0.2.1:1", "--dry-run"]) == 0
    assert "  config.yaml\n" in capsys.readouterr().out


def test_a_run_that_the_cluster_has_is_not_submitted_again(
    server: JobServer, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.job("RUNNING", run=str(tmp_path / "runs" / "small"))
    assert cli.main(["submit", "ray", str(write_config()), "--address", server.address]) == 64
    assert "submitted already and running" in capsys.readouterr().err
    assert server.posted == []


def test_status_of_a_run_whose_storage_is_not_here_is_what_ray_says(
    server: JobServer, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.job("FAILED", run=str(tmp_path / "runs" / "small"), driver_exit_code=75, message="Job entrypoint failed")
    assert cli.main(["status", str(write_config()), "--address", server.address, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit_code"], found["job"]) == ("stopped", 75, "ray job job-1")
    assert cli.main(["logs", str(write_config()), "--address", server.address]) == 0
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    ("status", "more", "state", "code"),
    [
        ("PENDING", {"message": "waiting for resources"}, "pending", None),
        ("RUNNING", {}, "running", None),
        ("SUCCEEDED", {"driver_exit_code": 0}, "gone", 0),
        ("FAILED", {"driver_exit_code": 78}, "gone", 78),
        ("STOPPED", {}, "gone", None),
    ],
)
def test_a_state_of_ray_becomes_a_job_status(
    server: JobServer, status: str, more: dict[str, Any], state: str, code: int | None
) -> None:
    server.job(status, **more)
    job = ray_jobs.ask("job-1", server.address)
    assert (job.state, job.exit_code) == (state, code)


def test_a_job_that_the_cluster_does_not_know_is_gone(server: JobServer) -> None:
    assert ray_jobs.ask("job-2", server.address).state == "gone"


def test_stopping_goes_through_the_job_server(server: JobServer) -> None:
    server.job("RUNNING")
    assert "is stopping" in ray_jobs.stop("job-1", server.address)
    server.jobs[0]["status"] = "SUCCEEDED"
    assert ray_jobs.stop("job-1", server.address) == "ray job job-1 has already ended"
    assert server.stopped == ["job-1", "job-1"]


def test_the_message_for_a_missing_token_names_its_places(server: JobServer) -> None:
    server.wants = TOKEN
    with pytest.raises(ClusterUnavailable, match=r"requires its token: set RAY_AUTH_TOKEN_PATH .*~/.ray/auth_token"):
        ray_jobs.ask("job-1", server.address)


def test_an_address_without_a_server_fails_at_once(server: JobServer) -> None:
    with pytest.raises(ClusterUnavailable, match=r"http://127.0.0.1:9: no server answers .*--address"):
        ray_jobs.ask("job-1", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://gate.example.com/ray", "https://gate.example.com/ray"),
    ],
)
def test_an_address_is_that_of_the_dashboard(given: str, expected: str) -> None:
    assert ray_jobs.resolved(given) == expected


@pytest.mark.parametrize("given", ["ray://head:10001", "ftp://head", "http://", "http://head:port", "http://h/?a=1"])
def test_another_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="not an address of Ray's job server"):
        ray_jobs.resolved(given)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as raised:
        ray_jobs.resolved("http://me:hunter2@head:8265")
    assert "hunter2" not in str(raised.value)


def test_without_an_address_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # not of a dashboard
    assert ray_jobs.resolved(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert ray_jobs.resolved(None) == "http://head:8265"


def test_a_token_over_an_open_network_is_warned_of() -> None:
    assert ray_jobs.warning("http://127.0.0.1:8265") is None
    assert ray_jobs.warning("https://head:8265") is None
    assert "ssh -L" in (ray_jobs.warning("http://head:8265") or "")

"""Jobs on a Ray cluster, by Ray's own client against a job server of a few lines."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.errors import ClusterUnavailable, UsageError
from launcher.places import programs
from launcher.places.programs import NotAnswered
from launcher.ray_backend import jobs as ray_jobs
from launcher.run import submissions
from launcher.run.directory import RunDirectory

pytest.importorskip("ray", reason="needs Ray")
TOKEN = "0123456789abcdef" * 4


@dataclass
class JobServer:
    """What the cluster knows, and what it was sent."""

    address: str = ""
    elsewhere: str = ""  # the same server, as on another host
    wants: str | None = None  # a token
    jobs: list[dict[str, Any]] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)
    packages: list[bytes] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)  # authorisations
    paths: list[str] = field(default_factory=list)  # of the requests
    fails: list[int] = field(default_factory=list)  # codes of the next answers
    logs: str = "hello\n"  # of every job
    loses_answers: int = 0  # to the next submissions, which it carries out
    leads_to: str = ""  # every request is redirected there

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
            state.given.append(given)
            state.paths.append(self.path)
            if state.leads_to:
                self.send_response(307)
                self.send_header("Location", state.leads_to + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return False
            if state.fails:
                self._answer(state.fails.pop(0), "not now")
                return False
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
                self._answer(200, {"logs": state.logs})
            elif found := [job for job in state.jobs if job["submission_id"] == name]:
                self._answer(200, found[0])
            else:
                self._answer(404, "no such thing")

        def do_PUT(self) -> None:
            body = self._body()
            if self._is_let_in():
                state.packages.append(body)
                self._answer(200, {})

        def do_POST(self) -> None:
            body = self._body()
            if not self._is_let_in():
                return
            if self.path.endswith("/stop"):
                state.stopped.append(self.path.split("/")[3])
                self._answer(200, {"stopped": state.jobs[0]["status"] == "RUNNING"})
                return
            posted = json.loads(body)
            job = posted["submission_id"]
            if job in [known["submission_id"] for known in state.posted]:
                # As in Ray 2.60: the agent answers 400, and the head passes that on as 500.
                text = f"Request failed with status code 400: ValueError: Job with submission_id {job} already exists."
                self._answer(500, text)
                return
            state.posted.append(posted)
            if state.loses_answers:
                state.loses_answers -= 1
                self.close_connection = True
                return
            self._answer(200, {"job_id": job, "submission_id": job})

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer((host, 0), Handler) for host in ("127.0.0.1", "127.0.0.2")]
    threads = [threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True) for http in servers]
    for thread in threads:
        thread.start()
    state.address, state.elsewhere = (f"http://{http.server_address[0]}:{http.server_port}" for http in servers)
    monkeypatch.setenv("HOME", str(tmp_path))  # no token of the user's own
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for name, value in (("LIMIT_S", 20.0), ("SUBMIT_LIMIT_S", 20.0), ("FIRST_WAIT_S", 0.01)):
        monkeypatch.setattr(programs, name, value)
    yield state
    for http, thread in zip(servers, threads, strict=True):
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def impatient(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is not asked again."""
    for name in ("LIMIT_S", "SUBMIT_LIMIT_S"):
        monkeypatch.setattr(programs, name, 0.0)


def test_what_is_submitted_is_the_packed_folder_and_a_fixed_command(
    server: JobServer, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    assert cli.main(["submit", "ray", str(write_config()), "seed=7", "--address", server.address]) == 0
    [posted] = server.posted
    assert posted["entrypoint"] == "python -m launcher.train config.yaml"
    assert posted["metadata"] == {"resnet-launcher/run": str(tmp_path / "runs" / "small")}
    assert "excludes" not in posted["runtime_env"]
    assert posted["runtime_env"]["working_dir"].startswith("gcs://")
    [package] = server.packages
    archive = zipfile.ZipFile(io.BytesIO(package))
    assert archive.namelist() == ["config.yaml"]
    text = archive.read("config.yaml").decode()
    assert f"storage: {tmp_path / 'runs'}" in text
    assert "seed: 7" in text
    [submission] = submissions.read(RunDirectory(tmp_path / "runs", "small"))
    assert (submission.id, submission.details) == (posted["submission_id"], {"address": server.address})
    out = capsys.readouterr().out
    assert re.search(r"working directory: 1 file, \d\.\d KiB\n", out)
    assert f"ray job {submission.id} at {server.address}" in out


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


def test_a_command_on_the_cluster_is_a_job_whose_log_is_read_until_it_ends(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(ray_jobs.uuid, "uuid4", lambda: uuid.UUID(int=7))
    server.job("RUNNING", submission_id=f"launcher-read-{uuid.UUID(int=7).hex}")
    server.logs = "first\nsec"
    lines = ray_jobs.lines(["watch", "/runs/a b", "--json"], server.address)
    assert next(lines) == "first"
    assert server.posted[0]["entrypoint"] == "python -m launcher watch '/runs/a b' --json"
    assert not server.posted[0].get("metadata")  # it is not taken for the run's own job
    server.logs += "ond\nthird\n"
    assert [next(lines), next(lines)] == ["second", "third"]
    server.jobs[0]["status"] = "SUCCEEDED"
    assert list(lines) == []
    other = ray_jobs.lines(["watch"], server.address)
    server.posted.clear()
    next(other)
    other.close()
    assert len(server.stopped) == 2


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
    with pytest.raises(
        ClusterUnavailable, match=r"requires the cluster's token\. Allowed: RAY_AUTH_TOKEN_PATH .*~/.ray/auth_token"
    ):
        ray_jobs.ask("job-1", server.address)


def test_variables_of_the_shell_do_not_change_what_is_sent(
    server: JobServer, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "*.yaml")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert cli.main(["submit", "ray", str(write_config()), "--address", server.address]) == 0
    [package] = server.packages
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["config.yaml"]
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"  # as before


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_server_that_is_not_ready_is_asked_until_it_is(server: JobServer, code: int) -> None:
    server.job("RUNNING")
    server.fails = [code, code, code]
    assert ray_jobs.ask("job-1", server.address).state == "running"


def test_a_submission_without_an_answer_is_not_repeated_as_a_second_job(
    server: JobServer, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    server.loses_answers = 1
    assert cli.main(["submit", "ray", str(write_config()), "--address", server.address]) == 0
    [posted] = server.posted
    [submission] = submissions.read(RunDirectory(tmp_path / "runs", "small"))
    assert submission.id == posted["submission_id"]


@pytest.mark.usefixtures("impatient")
def test_an_error_says_whether_the_job_was_submitted(
    server: JobServer, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", "ray", str(write_config()), "--address"]
    assert cli.main([*command, "http://127.0.0.1:9"]) == 69
    first, below, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("error: Ray's job server at http://127.0.0.1:9 cannot be reached; nothing was submitted. ")
    assert first.endswith("Allowed: the address of a running cluster's dashboard: --address http://HEAD:8265")
    assert below.endswith("Failed to establish a new connection: [Errno 111] Connection refused")
    server.loses_answers = 1
    assert cli.main([*command, server.address]) == 69
    first = capsys.readouterr().err.splitlines()[0]
    assert f"cannot be reached; ray job {server.posted[0]['submission_id']} may have been submitted" in first


@pytest.mark.usefixtures("impatient")
def test_silence_is_not_gone(server: JobServer) -> None:
    server.fails = [503]
    with pytest.raises(NotAnswered, match=r"cannot be reached\n    \"not now\"\n    HTTP status 503"):
        ray_jobs.ask("job-1", server.address)
    with pytest.raises(NotAnswered, match=r"Ray's job server at http://127.0.0.1:9 cannot be reached"):
        ray_jobs.ask("job-1", "http://127.0.0.1:9")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_accepts_and_says_nothing_is_not_waited_for_without_end(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(NotAnswered, match="timed out"):
        ray_jobs.ask("job-1", f"http://127.0.0.1:{deaf.getsockname()[1]}")


ASKS = """
import json, sys
from launcher.errors import ClusterUnavailable
from launcher.ray_backend import jobs
for recorded, given in json.loads(sys.argv[1]):
    try:
        print(jobs.ask("job-1", recorded, given).state)
    except ClusterUnavailable as error:
        print(str(error).splitlines()[0])
"""


def asks(tmp_path: Path, *addresses: tuple[str | None, str | None], **variables: str) -> list[str]:
    """What a process of a user with a token finds at each pair of addresses: recorded, and given by the user."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, exist_ok=True)
    token.write_text(TOKEN)
    token.chmod(0o600)
    environment = {**os.environ, "HOME": str(tmp_path), **variables}
    command = [sys.executable, "-c", ASKS, json.dumps(addresses)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_token_goes_only_to_addresses_that_the_user_gives(server: JobServer, tmp_path: Path) -> None:
    server.job("RUNNING")
    server.wants = TOKEN
    here, there = server.address, server.elsewhere
    refusal = (
        f"Ray's job server at {there} requires the cluster's token, which is not sent to an address that only a record "
        f"names. Allowed: --address {there}, if this is your cluster"
    )
    # This machine, another host by a record, by --address, by --address instead of the record, and by a record again.
    pairs = [(here, None), (there, None), (None, there), ("http://192.0.2.1:1", there), (there, there), (there, None)]
    assert asks(tmp_path, *pairs) == ["running", refusal, "running", "running", "running", refusal]
    assert asks(tmp_path, (there, None), (there + "/", None), RAY_ADDRESS=there) == ["running", "running"]
    assert set(server.given) == {"", f"Bearer {TOKEN}"}
    server.given.clear()
    assert asks(tmp_path, (there, None), RAY_API_SERVER_ADDRESS=here) == [refusal]
    assert set(server.given) == {""}


def test_a_redirection_does_not_carry_the_token(server: JobServer, tmp_path: Path) -> None:
    server.job("RUNNING")
    seen = []

    class Thief(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.2", 0), Thief) as thief:
        thread = threading.Thread(target=thief.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.leads_to = f"http://127.0.0.2:{thief.server_address[1]}"
        asks(tmp_path, (server.address, None))
        thief.shutdown()
        thread.join()
    assert set(server.given) == {f"Bearer {TOKEN}"}
    assert set(seen) == {None}


def test_a_proxy_does_not_get_the_token_for_this_machine(server: JobServer, tmp_path: Path) -> None:
    server.job("RUNNING")
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), server.elsewhere)
    assert asks(tmp_path, (server.address, None), **proxy, no_proxy="", NO_PROXY="") == ["running"]
    assert all("://" not in path for path in server.paths)


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

"""Jobs on an existing Ray cluster, through its job server. Ray is imported at the first request.

Address: --address http://HEAD:8265, RAY_API_SERVER_ADDRESS, an http address in RAY_ADDRESS, or http://127.0.0.1:8265.
"""

from __future__ import annotations

import logging
import os
import socket
import urllib.parse
from pathlib import Path
from typing import Any

from launcher.errors import ClusterUnavailable, UsageError
from launcher.places.packing import CONFIG, Pack
from launcher.run.submissions import JobStatus

ENTRYPOINT = f"python -m launcher.train {CONFIG}"  # contains no text of the user: it goes through a shell
RUN_KEY = "resnet-launcher/run"  # of the run directory in a job's metadata
# Applied to the packed files. Ray also follows .gitignore files; none is packed.
EXCLUDES = ["**/__pycache__", "**/*.pyc", "**/.git", "**/.env"]
CONNECT_S = 10.0  # assumption: a reachable head accepts a connection in this time

_DEFAULT = "http://127.0.0.1:8265"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TOKEN = (
    "the cluster requires its token: set RAY_AUTH_TOKEN_PATH to a file with the token that only you can read (mode "
    "0600), or save it as ~/.ray/auth_token. On the cluster, `ray get-auth-token` shows it"
)


def resolved(address: str | None) -> str:
    """The address of the job server. Raises UsageError for an invalid address, or one with a password."""
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _from_ray_address() or _DEFAULT
    url = urllib.parse.urlsplit(found if "://" in found else f"http://{found}")
    try:
        port = url.port
    except ValueError:
        port = -1
    if url.scheme not in ("http", "https") or not url.hostname or port == -1 or url.query or url.fragment:
        raise UsageError(f"--address {found}: not an address of Ray's job server. Allowed: http://HEAD:8265, or https")
    if url.username is not None or url.password is not None:
        raise UsageError("--address contains a user or a password. Allowed: http://HEAD:8265, with the token in a file")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def warning(address: str) -> str | None:
    """A warning if a token sent to `address` could be read by others; else None."""
    url = urllib.parse.urlsplit(address)
    if url.scheme == "https" or url.hostname in _LOOPBACK:
        return None
    return (
        f"the connection to {address} is not encrypted: others on the network can read the token. Safer: "
        f"ssh -L 8265:localhost:8265 {url.hostname}, with --address {_DEFAULT}"
    )


def submit(pack: Pack, run: Path, address: str) -> str:
    """Submit a packed run; returns the job's id. Raises ClusterUnavailable."""
    with _Client(address) as client:
        job: str = client.submit_job(
            entrypoint=ENTRYPOINT,
            runtime_env={"working_dir": str(pack.folder), "excludes": EXCLUDES},
            metadata={RUN_KEY: str(run)},
        )
        return job


def find(run: Path, address: str) -> str | None:
    """The id of the newest job of a run; None without one. Raises ClusterUnavailable."""
    with _Client(address) as client:
        jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN_KEY) == str(run)]
    newest = max(jobs, key=lambda job: job.start_time or 0, default=None)
    return None if newest is None else str(newest.submission_id)


def ask(job: str, address: str | None) -> JobStatus:
    """The job server's report of a job. Raises ClusterUnavailable."""
    with _Client(resolved(address)) as client:
        try:
            details = client.get_job_info(job)
        except RuntimeError as error:
            if "404" in str(error):
                return JobStatus("gone", f"the Ray cluster does not have job {job}: it may have been restarted")
            raise
    message = (details.message or "").strip().splitlines()
    state = str(getattr(details.status, "value", details.status))
    if state == "PENDING":
        return JobStatus("pending", message[0] if message else "Ray has not started its driver yet")
    if state == "RUNNING":
        return JobStatus("running", "running")
    reason = f"Ray reports {state}{f': {message[0]}' if message else ''}"
    return JobStatus("gone", reason, details.driver_exit_code)


def stop(job: str, address: str | None) -> str:
    """Stop a job: SIGTERM to its driver, which saves, and later SIGKILL. Raises ClusterUnavailable."""
    with _Client(resolved(address)) as client:
        was_running = client.stop_job(job)
    if not was_running:
        return f"ray job {job} has already ended"
    return f"ray job {job} is stopping; Ray kills it after RAY_JOB_STOP_WAIT_TIME_S (default 3 s)"


def driver_log(job: str, address: str | None) -> str:
    """The output of the driver. Raises ClusterUnavailable."""
    with _Client(resolved(address)) as client:
        text: str = client.get_job_logs(job)
        return text


class _Client:
    """A client of the job server as a context manager; its errors become ClusterUnavailable."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> Any:
        _connect(self._address)
        os.environ["RAY_API_SERVER_ADDRESS"] = (
            self._address
        )  # it overrides RAY_ADDRESS, which overrides the argument of the client
        _use_existing_token()
        try:
            from ray.exceptions import RayError
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise UsageError("this needs Ray: pip install 'resnet-launcher[ray]'") from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._errors = (RuntimeError, OSError, RayError)  # the HTTP library's own are OSErrors
        try:
            return JobSubmissionClient(self._address)
        except self._errors as error:
            raise self._translate(error) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, self._errors):
            raise self._translate(error) from None

    def _translate(self, error: BaseException) -> ClusterUnavailable:
        if type(error).__name__ == "AuthenticationError":
            return ClusterUnavailable(f"{self._address}: {_TOKEN}")
        first = (str(error).strip().splitlines() or [""])[0]
        return ClusterUnavailable(f"{self._address}: Ray's job server: {first}")


def _use_existing_token() -> None:
    """Make Ray send an existing token: it does so only with RAY_AUTH_MODE=token."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _from_ray_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return address if address.startswith(("http://", "https://")) else None


def _connect(address: str) -> None:
    """Raise ClusterUnavailable if no server listens there: Ray's requests have no timeout."""
    url = urllib.parse.urlsplit(address)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((str(url.hostname), port), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterUnavailable(
            f"{address}: no server answers ({error.strerror or error}). Start the Ray cluster, or give the address of "
            "its dashboard: --address http://HEAD:8265"
        ) from None

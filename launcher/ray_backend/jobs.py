"""Jobs on an existing Ray cluster, through its job server. Ray is imported at the first request.

Address: --address http://HEAD:8265, RAY_API_SERVER_ADDRESS, an http address in RAY_ADDRESS, or http://127.0.0.1:8265.
The token is sent to an address that the user gives in one of these ways, and to this machine. It is not sent to an
address that only the record of a submission names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import ClusterUnavailable, UsageError
from launcher.places import programs
from launcher.places.packing import CONFIG, Pack
from launcher.places.programs import Lines, NotAnswered, PlaceUnavailable, until_answered
from launcher.run.submissions import JobStatus

ENTRYPOINT = f"python -m launcher.train {CONFIG}"  # contains no text of the user: it goes through a shell
RUN_KEY = "resnet-launcher/run"  # of the run directory in a job's metadata
CONNECT_S = 10.0  # assumption: a reachable head accepts a connection in this time
ANSWER_S = 60.0  # assumption: and answers in this time
LOG_EVERY_S = 3.0  # between two requests for the log of a job that reads

_DEFAULT = "http://127.0.0.1:8265"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ADDRESS = "the address of a running cluster's dashboard: --address http://HEAD:8265"
_TOKEN = (
    "RAY_AUTH_TOKEN_PATH with the path of a file with the token that only you can read (mode 0600), or the token in "
    "~/.ray/auth_token. On the cluster, `ray get-auth-token` shows it"
)
# Variables that change what Ray's client packs, and with which all that `pack` has chosen is sent.
_SEND_ALL = {"RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "", "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"}


def resolved(address: str | None) -> str:
    """The address of the job server. Raises UsageError for an invalid address, or one with a password."""
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _from_ray_address() or _DEFAULT
    url = urllib.parse.urlsplit(found if "://" in found else f"http://{found}")
    try:
        port = url.port
    except ValueError:
        port = -1
    if url.scheme not in ("http", "https") or not url.hostname or port == -1 or url.query or url.fragment:
        raise UsageError(f"{found}: not an address of Ray's job server. Allowed: --address http://HEAD:8265, or https")
    if url.username is not None or url.password is not None:
        raise UsageError("--address contains a user or a password. Allowed: http://HEAD:8265, with the token in a file")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def warning(address: str) -> str | None:
    """A warning if a token sent to `address` could be read by others; else None."""
    url = urllib.parse.urlsplit(address)
    if url.scheme == "https" or _is_this_machine(address):
        return None
    return (
        f"the connection to {address} is not encrypted: others on the network can read the token. Safer: "
        f"ssh -L 8265:localhost:8265 {url.hostname}, with --address http://HEAD:8265"
    )


def submit(pack: Pack, run: Path, address: str) -> str:
    """Submit a packed run; returns the job's id. Raises ClusterUnavailable; its message says whether it was submitted.

    The id is chosen here, so that a request that is repeated does not start a second job.
    """
    job = f"launcher-{uuid.uuid4().hex}"
    try:
        with _job_server(address, limit_s=programs.SUBMIT_LIMIT_S) as client:
            client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=job,
                runtime_env={"working_dir": str(pack.folder)},
                metadata={RUN_KEY: str(run)},
            )
    except PlaceUnavailable as error:
        if "already exists" in error.printed:  # the answer to an earlier request was lost
            return job
        unknown = isinstance(error, NotAnswered) and error.maybe_arrived
        outcome = f"ray job {job} may have been submitted" if unknown else "nothing was submitted"
        raise error.but(outcome) from None
    return job


def find(run: Path, address: str) -> str | None:
    """The id of the newest job of a run; None without one. Raises ClusterUnavailable."""
    with _job_server(address) as client:
        jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN_KEY) == str(run)]
    newest = max(jobs, key=lambda job: job.start_time or 0, default=None)
    return None if newest is None else str(newest.submission_id)


def ask(job: str, recorded: str | None, given: str | None = None) -> JobStatus:
    """The job server's report of a job: at the address `given` by the user, else at the recorded one.

    Raises ClusterUnavailable.
    """
    with _job_server(*_choice(recorded, given)) as client:
        try:
            details = client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" in str(error):
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


def stop(job: str, recorded: str | None, given: str | None = None) -> str:
    """Stop a job: SIGTERM to its driver, which saves, and later SIGKILL. Raises ClusterUnavailable."""
    with _job_server(*_choice(recorded, given)) as client:
        was_running = client.stop_job(job)
    if not was_running:
        return f"ray job {job} has already ended"
    return f"ray job {job} is stopping; Ray kills it after RAY_JOB_STOP_WAIT_TIME_S (default 3 s)"


def driver_log(job: str, recorded: str | None, given: str | None = None) -> str:
    """The output of the driver. Raises ClusterUnavailable."""
    with _job_server(*_choice(recorded, given)) as client:
        text: str = client.get_job_logs(job)
        return text


def lines(arguments: Sequence[str], address: str) -> Lines:
    """The lines that `launcher ARGUMENTS` prints on the cluster's head, as a job of its own, as they come.

    To close it stops the job. The log is fetched whole each time: it should stay below some megabytes. Raises
    ClusterUnavailable.
    """
    job, num_read = f"launcher-read-{uuid.uuid4().hex}", 0
    with _job_server(address) as client:
        client.submit_job(entrypoint=shlex.join(["python", "-m", "launcher", *arguments]), submission_id=job)
        try:
            has_ended = False
            while not has_ended:
                has_ended = client.get_job_status(job).is_terminal()
                whole, newline, _ = client.get_job_logs(job)[num_read:].rpartition("\n")
                num_read += len(whole) + len(newline)
                yield from whole.splitlines()
                time.sleep(0.0 if has_ended else LOG_EVERY_S)
        finally:
            with contextlib.suppress(RuntimeError, OSError, ClusterUnavailable):  # it ends by itself
                client.stop_job(job)


def _choice(recorded: str | None, given: str | None) -> tuple[str, bool]:
    """The address to ask, and whether the user confirms it."""
    if given or not recorded:
        return resolved(given), True
    try:
        address = resolved(recorded)
        return address, _is_this_machine(address) or address == resolved(None)
    except UsageError as error:
        raise PlaceUnavailable(str(error)) from None


def _is_this_machine(address: str) -> bool:
    return urllib.parse.urlsplit(address).hostname in _LOOPBACK


@contextlib.contextmanager
def _job_server(address: str, confirmed: bool = True, limit_s: float | None = None) -> Iterator[Any]:
    """Ray's client of the job server, which repeats requests until they are answered. Raises PlaceUnavailable."""
    _use_existing_token()
    try:
        import requests
        from ray.exceptions import AuthenticationError, RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise PlaceUnavailable("Ray is not installed here", allowed="pip install 'resnet-launcher[ray]'") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    server = f"Ray's job server at {address}"
    # This machine is never reached through a proxy, which would read the token.
    proxies = dict.fromkeys(("http", "https", "all")) if _is_this_machine(address) else None

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            more |= {"timeout": (CONNECT_S, ANSWER_S), "proxies": proxies}

            def once() -> Any:
                try:
                    answer = JobSubmissionClient._do_request(self, method, endpoint, **more)
                except requests.exceptions.SSLError:
                    raise
                except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                    not_sent = isinstance(error, requests.ConnectTimeout) or "establish a new conn" in str(error)
                    maybe_arrived = method == "POST" and not not_sent
                    cause = str(getattr(error.args[0], "reason", error)) if error.args else ""
                    raise NotAnswered(server, cause, _ADDRESS, maybe_arrived=maybe_arrived) from None
                # The head reports an agent's refusal with 500, and its code in the text.
                if answer.status_code >= 500 and "status code 4" not in answer.text:
                    printed = f"{answer.text}\nHTTP status {answer.status_code}"
                    raise NotAnswered(server, printed, maybe_arrived=method == "POST")
                return answer

            return until_answered(once, limit_s)

    try:
        # Ray's client prefers the address in its variable to the one in its argument.
        with _variables({**_SEND_ALL, "RAY_API_SERVER_ADDRESS": address}):
            yield Client(address, headers=None if confirmed else {"Authorization": None})
    except AuthenticationError:
        if confirmed:
            raise PlaceUnavailable(f"{server} requires the cluster's token", allowed=_TOKEN) from None
        line = f"{server} requires the cluster's token, which is not sent to an address that only a record names"
        raise PlaceUnavailable(line, allowed=f"--address {address}, if this is your cluster") from None
    except (RuntimeError, OSError, RayError) as error:  # the HTTP library's own are OSErrors
        raise PlaceUnavailable(f"{server} refuses the request", str(error)) from None


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _use_existing_token() -> None:
    """Make Ray send an existing token: it does so only with RAY_AUTH_MODE=token."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _from_ray_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return address if address.startswith(("http://", "https://")) else None

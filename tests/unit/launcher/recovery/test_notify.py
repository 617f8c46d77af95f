"""Notifications by command and webhook; their failures do not affect the run."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Notify
from launcher.recovery import notify
from launcher.recovery.notify import Notifier
from launcher.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path, "run")


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server's address, and what was posted to it."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", bodies
        server.shutdown()
        thread.join()


def test_a_command_gets_the_event_on_its_standard_input(run: RunDirectory, tmp_path: Path) -> None:
    target = tmp_path / "told; touch evil.json"
    program = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    notifier = Notifier(Notify(command=f"'{sys.executable}' -c \"{program}\" '{target}'"), run)
    notifier.notify("failure", "attempt 1 failed", exit_code=76)
    notifier.close()
    told = json.loads(target.read_text())
    assert (told["event"], told["message"], told["exit_code"]) == ("failure", "attempt 1 failed", 76)
    assert told["run"] == str(run.path)


def test_a_number_that_is_not_finite_is_posted_as_null(
    run: RunDirectory, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    address, bodies = posted
    notifier = Notifier(Notify(webhook=address), run)
    notifier.notify("finished", "all steps done", top1=float("nan"), losses=[float("inf"), 0.5])
    notifier.close()
    assert [(body["top1"], body["losses"]) for body in bodies] == [(None, [None, 0.5])]


def test_a_webhook_gets_the_event_posted(run: RunDirectory, posted: tuple[str, list[dict[str, Any]]]) -> None:
    address, bodies = posted
    notifier = Notifier(Notify(webhook=address), run)
    notifier.notify("finished", "all 40 steps done", step=40)
    notifier.close()
    assert [(body["event"], body["step"]) for body in bodies] == [("finished", 40)]


def test_an_address_with_a_secret_is_read_from_the_environment_at_each_event(
    run: RunDirectory, posted: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = posted
    monkeypatch.delenv("PAGER_URL", raising=False)
    notifier = Notifier(Notify(webhook_env="PAGER_URL"), run)
    notifier.notify("preempted", "not sent")
    monkeypatch.setenv("PAGER_URL", address)
    notifier.notify("finished", "all 40 steps done")
    notifier.close()
    assert [body["event"] for body in bodies] == ["finished"]


def test_an_unset_variable_is_logged_at_the_start(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    Notifier(Notify(webhook_env="NO_SUCH_PAGER_URL"), run)
    assert "NO_SUCH_PAGER_URL is not set" in caplog.text


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/sw0rdfish", "http://127.0.0.1:sw0rdfish/", "sw0rdfish://x", "http://sw0rd fish/"]
)
def test_an_address_that_fails_is_not_logged(
    address: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAGER_URL", address)
    notifier = Notifier(Notify(webhook_env="PAGER_URL"), run)
    notifier.notify("finished", "done")
    notifier.close()
    assert "notification failed" in caplog.text
    assert "sw0rd" not in caplog.text


@pytest.mark.parametrize(
    "settings", [Notify(command="/there/is/no/such/program"), Notify(webhook="http://127.0.0.1:9/nobody")]
)
def test_a_failed_notification_does_not_fail_the_run(
    run: RunDirectory, settings: Notify, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(settings, run)
    notifier.notify("finished", "done")
    notifier.close()
    assert "notification failed" in caplog.text


def test_no_progress_is_reported_once_per_step(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 0.0, []
    monkeypatch.setattr(notify.time, "monotonic", lambda: now)
    notifier = Notifier(Notify(command="page", no_progress_minutes=2), run)
    monkeypatch.setattr(notifier, "notify", lambda event, message, **facts: told.append((event, facts)))
    for now in range(0, 600, 10):
        notifier.see_step(7 if now < 400 else 8)
    assert told == [("no_progress", {"step": 7}), ("no_progress", {"step": 8})]

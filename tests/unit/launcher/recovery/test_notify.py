"""Somebody is told, and nobody is held up."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.rules import secret_in
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
    notifier.tell("failure", "attempt 1 failed", exit_code=76)
    notifier.close()
    told = json.loads(target.read_text())
    assert (told["event"], told["message"], told["exit_code"]) == ("failure", "attempt 1 failed", 76)
    assert told["run"] == str(run.path)


def test_a_number_that_is_not_finite_is_posted_as_null(
    run: RunDirectory, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    address, bodies = posted
    notifier = Notifier(Notify(webhook=address), run)
    notifier.tell("finished", "all steps done", top1=float("nan"), losses=[float("inf"), 0.5])
    notifier.close()
    assert [(body["top1"], body["losses"]) for body in bodies] == [(None, [None, 0.5])]


def test_a_webhook_gets_the_event_posted(run: RunDirectory, posted: tuple[str, list[dict[str, Any]]]) -> None:
    address, bodies = posted
    notifier = Notifier(Notify(webhook=address), run)
    notifier.tell("finished", "all 40 steps done", step=40)
    notifier.close()
    assert [(body["event"], body["step"]) for body in bodies] == [("finished", 40)]


def test_an_address_with_a_secret_is_read_from_the_environment_when_there_is_something_to_tell(
    run: RunDirectory, posted: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = posted
    monkeypatch.delenv("PAGER_URL", raising=False)
    notifier = Notifier(Notify(webhook_env="PAGER_URL"), run)
    notifier.tell("preempted", "nobody to tell")
    monkeypatch.setenv("PAGER_URL", address)
    notifier.tell("finished", "all 40 steps done")
    notifier.close()
    assert [body["event"] for body in bodies] == ["finished"]


def test_a_variable_that_is_not_set_is_told_at_the_start(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    Notifier(Notify(webhook_env="NO_SUCH_PAGER_URL"), run)
    assert "NO_SUCH_PAGER_URL is not set" in caplog.text


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/sw0rdfish", "http://127.0.0.1:sw0rdfish/", "sw0rdfish://x", "http://sw0rd fish/"]
)
def test_an_address_that_fails_does_not_show_itself(
    address: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAGER_URL", address)
    notifier = Notifier(Notify(webhook_env="PAGER_URL"), run)
    notifier.tell("finished", "done")
    notifier.close()
    assert "nobody was told" in caplog.text
    assert "sw0rd" not in caplog.text


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("https://hooks.example.org/services/T024BE7LH/B024BE7LH/qX7wJ2mKp9LdR4sVtY8zN3cF", "a part of the path"),
        ("https://api.example.org/bot110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/sendMessage", "a part of the path"),
        ("https://hooks.example.org/6f1d2c3b-8a7e-4f60-9b1c-0d2e3f4a5b6c", "a part of the path"),
        ("https://pager.example.org/hook?token=abc", "a query"),
        ("https://me:abc@pager.example.org/hook", "a user"),
        ("http://127.0.0.1:8080/hook", None),
        ("https://pager.example.org/teams/machine-learning/no-progress-notifications", None),
    ],
)
def test_an_address_that_holds_a_secret_is_known(address: str, secret: str | None) -> None:
    assert secret_in(address) == secret


@pytest.mark.parametrize(
    "settings", [Notify(command="/there/is/no/such/program"), Notify(webhook="http://127.0.0.1:9/nobody")]
)
def test_whoever_cannot_be_told_fails_nobody(
    run: RunDirectory, settings: Notify, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(settings, run)
    notifier.tell("finished", "done")
    notifier.close()
    assert "nobody was told" in caplog.text


def test_a_step_that_stands_still_is_told_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 0.0, []
    monkeypatch.setattr(notify.time, "monotonic", lambda: now)
    notifier = Notifier(Notify(command="page", no_progress_minutes=2), run)
    monkeypatch.setattr(notifier, "tell", lambda event, message, **facts: told.append((event, facts)))
    for now in range(0, 600, 10):
        notifier.see_step(7 if now < 400 else 8)
    assert told == [("no_progress", {"step": 7}), ("no_progress", {"step": 8})]

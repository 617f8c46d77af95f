"""Notifications of a run's events: `notify.command` gets JSON on standard input, `notify.webhook` an HTTP POST.

    {"event": "failure", "run": "/shared/runs/rn50", "time": "...", "message": "...", ...}

Events: finished, failure (with another attempt), gave_up, preempted, stopped, no_progress. A notification that fails is
logged and never fails the run.

A webhook address that contains a secret is read from the environment variable `notify.webhook_env` at each event. It is
never written or logged.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable

from launcher.config.schema import Notify
from launcher.run.directory import RunDirectory
from launcher.run.record_types import utc_now
from resnet_dist.telemetry.json_lines import without_non_finite

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0  # assumption: longer than the answer of any webhook or command that works


class Notifier:
    """Sends the events of a run, each in a thread, so that only `close` waits for the receiver."""

    def __init__(self, settings: Notify, run: RunDirectory) -> None:
        self._settings, self._run = settings, run
        self._threads: list[threading.Thread] = []
        self._progress: tuple[int, float] | None = None  # the newest step, and when it was first seen
        self._reported_step = -1
        if settings.webhook_env is not None and not os.environ.get(settings.webhook_env):
            log.warning("notify.webhook_env: %s is not set: no event will be posted", settings.webhook_env)

    def notify(self, event: str, message: str, **facts: object) -> None:
        """Send an event with its `facts`, plain values; numbers that are not finite become null."""
        variable = self._settings.webhook_env
        webhook = self._settings.webhook if variable is None else os.environ.get(variable)
        if self._settings.command is None and not webhook:
            return
        content = {"event": event, "run": str(self._run.path), "time": utc_now(), "message": message, **facts}
        body = json.dumps(without_non_finite(content), allow_nan=False).encode()
        for send, target in ((_run, self._settings.command), (_post, webhook)):
            if target:
                thread = threading.Thread(target=_log_errors, args=(send, target, body), daemon=True)
                thread.start()
                self._threads.append(thread)

    def see_step(self, step: int) -> None:
        """Take the newest step; sends `no_progress` after notify.no_progress_minutes without a new one."""
        minutes, now = self._settings.no_progress_minutes, time.monotonic()
        if self._progress is None or step != self._progress[0]:
            self._progress = (step, now)
        elif minutes is not None and now - self._progress[1] >= minutes * 60 and self._reported_step != step:
            self._reported_step = step
            self.notify("no_progress", f"no new step for {minutes:g} minutes: still at step {step}", step=step)

    def close(self) -> None:
        """Wait for the running notifications, up to TIMEOUT_S."""
        deadline = time.monotonic() + TIMEOUT_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))


def _log_errors(send: Callable[[str, bytes], None], target: str, body: bytes) -> None:
    try:
        send(target, body)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("notification failed (%s): %s", type(error).__name__, error)


def _run(command: str, body: bytes) -> None:
    done = subprocess.run(shlex.split(command), input=body, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        log.warning(
            "notification failed: notify.command exited with %d: %s",
            done.returncode,
            done.stderr.decode(errors="replace")[-500:],
        )


def _post(address: str, body: bytes) -> None:
    import http.client  # a part of the start of every command
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        log.warning("notification failed: the webhook answered %d", error.code)
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        log.warning("notification failed: the webhook does not answer: %s", reason)
    except (OSError, ValueError, http.client.HTTPException) as error:  # their texts may contain the address
        log.warning("notification failed: the webhook's address or answer is invalid (%s)", type(error).__name__)

"""Tells somebody: `notify.command` gets an event as JSON on its standard input, `notify.webhook` gets it posted.

    {"event": "failure", "run": "/shared/runs/rn50", "time": "...", "message": "...", ...}

Events: finished, failure (tried again), gave_up, preempted, stopped, no_progress. Whoever cannot be told never fails
the run: that is logged.

An address with a secret in it stands in an environment variable that `notify.webhook_env` names. It is read when there
is something to tell, and never written or logged.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from launcher.config.schema import Notify
from launcher.run.directory import RunDirectory, utc_now
from resnet_dist.telemetry.json_lines import without_non_finite

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0  # assumption: a pager that has not answered by then will not


class Notifier:
    """Tells of a run's events, each in a thread of its own: nobody waits for a pager but the end of the program."""

    def __init__(self, notify: Notify, run: RunDirectory) -> None:
        self._notify, self._run = notify, run
        self._threads: list[threading.Thread] = []
        self._progress: tuple[int, float] | None = None  # the newest step, and when it was first seen
        self._told_of = -1
        if notify.webhook_env is not None and not os.environ.get(notify.webhook_env):
            log.warning("notify.webhook_env: %s is not set here: nothing will be posted", notify.webhook_env)

    def tell(self, event: str, message: str, **facts: Any) -> None:
        """Tell of an event. `facts` are plain values that stand beside it; a number that is not finite becomes null."""
        variable = self._notify.webhook_env
        webhook = self._notify.webhook if variable is None else os.environ.get(variable)
        if self._notify.command is None and not webhook:
            return
        now = utc_now()
        content = {"event": event, "run": str(self._run.path), "time": now, "message": message, **facts}
        body = json.dumps(without_non_finite(content), allow_nan=False).encode()
        for send, target in ((_run, self._notify.command), (_post, webhook)):
            if target:
                thread = threading.Thread(target=_safely, args=(send, target, body), daemon=True)
                thread.start()
                self._threads.append(thread)

    def see_step(self, step: int) -> None:
        """Called every so often with the newest step: tells once where it has stood still for too long."""
        minutes, now = self._notify.no_progress_minutes, time.monotonic()
        if self._progress is None or step != self._progress[0]:
            self._progress = (step, now)
        elif minutes is not None and now - self._progress[1] >= minutes * 60 and self._told_of != step:
            self._told_of = step
            self.tell("no_progress", f"no new step for {minutes:g} minutes: still at step {step}", step=step)

    def close(self) -> None:
        """Wait until everybody has been told, a bounded time."""
        deadline = time.monotonic() + TIMEOUT_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))


def _safely(send: Any, target: str, body: bytes) -> None:
    try:
        send(target, body)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("nobody was told (%s): %s", type(error).__name__, error)


def _run(command: str, body: bytes) -> None:
    done = subprocess.run(shlex.split(command), input=body, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        log.warning("notify.command ended with %d: %s", done.returncode, done.stderr.decode(errors="replace")[-500:])


def _post(address: str, body: bytes) -> None:
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        log.warning("nobody was told: the webhook answers %d", error.code)
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        log.warning("nobody was told: the webhook does not answer: %s", reason)
    except (OSError, ValueError, http.client.HTTPException) as error:  # their texts may repeat the address
        log.warning("nobody was told: the webhook's address or answer is not right (%s)", type(error).__name__)

"""Requests to stop a worker: a stop file, a signal, a preemption notice."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.run.directory import AttemptLogs

log = logging.getLogger(__name__)

NOTICE_EVERY_S = 1.0  # between two checks for a preemption notice: the trainer asks at every step


class FileSupervisor:
    """Asks a worker to stop after a signal, the driver's stop request, or a preemption notice.

    Rank 0 checks the stop request on the shared storage; that is enough, as one worker stops all. Every worker checks
    `notice_file` on its host, and records a notice for the driver. `listener` receives the metrics.
    """

    def __init__(
        self,
        logs: AttemptLogs,
        rank: int,
        *,
        node_id: str | None = None,
        notice_file: str | None = None,
        signalled: Callable[[], bool] = lambda: False,
        listener: Callable[[Mapping[str, object]], None] = lambda record: None,
    ) -> None:
        self._stop_file = logs.stop_request if rank == 0 else None
        self._notice_file = None if notice_file is None else Path(notice_file)
        self._record, self._rank, self._node_id = logs.preemption_notice(rank), rank, node_id
        self._signalled, self._listener = signalled, listener
        self._noticed, self._checked = False, float("-inf")
        self._unreadable: set[Path] = set()

    def stop_requested(self) -> bool:
        """Whether a signal has arrived, or the stop request or the preemption notice exists."""
        return self._signalled() or self._exists(self._stop_file) or self._preempted()

    def metrics(self, record: Mapping[str, object]) -> None:
        """Pass a record on to the listener."""
        self._listener(record)

    def _preempted(self) -> bool:
        now = time.monotonic()
        if self._notice_file is None or self._noticed or now - self._checked < NOTICE_EVERY_S:
            return self._noticed
        self._checked = now
        self._noticed = self._exists(self._notice_file)
        if self._noticed:
            content = {"rank": self._rank, "host": socket.gethostname(), "node_id": self._node_id}
            try:
                self._record.write_text(json.dumps(content))
            except OSError as error:  # a full disk: stop all the same
                log.warning("cannot record the preemption notice: %s", error)
        return self._noticed

    def _exists(self, file: Path | None) -> bool:
        """Whether `file` exists; False while the file system does not answer. The first such error is logged."""
        if file is None:
            return False
        try:
            there = file.exists()
        except OSError as error:
            if file not in self._unreadable:
                log.warning("cannot check for %s: %s", file, error)
            self._unreadable.add(file)
            return False
        self._unreadable.discard(file)
        return there

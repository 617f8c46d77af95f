"""When a worker is asked to stop: a stop file, a signal, a preemption notice."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.stop_request import Request

log = logging.getLogger(__name__)

NOTICE_EVERY_S = 1.0  # between two looks for a notice: the loop asks at every step


class FileSupervisor:
    """Obeys a stop file that a driver writes, this process's own signals and a notice that its node will go away.

    Metrics go to `listener`. The first sight of the notice is told to `on_notice`.
    """

    def __init__(
        self,
        stop_file: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
        listener: Callable[[Mapping[str, Any]], None] = lambda record: None,
        notice_file: Path | None = None,
        on_notice: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop_file, self._stopped, self._listener = stop_file, stopped, listener
        self._notice_file, self._on_notice = notice_file, on_notice
        self._noticed, self._looked = False, float("-inf")
        self._unreadable: set[Path] = set()

    @property
    def noticed(self) -> bool:
        """Whether this worker's node was told that it will go away."""
        return self._noticed

    def request(self) -> Request:
        """Stop, once a signal came or one of the files is there."""
        asked = self._stopped() or (self._stop_file is not None and self._is_there(self._stop_file)) or self._look()
        return Request.STOP if asked else Request.CONTINUE

    def checkpoint(self, path: str, step: int) -> None:
        """The checkpoint is on the shared storage, where the next attempt looks for it."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Hand a record to whoever shows it."""
        self._listener(record)

    def _look(self) -> bool:
        now = time.monotonic()
        if self._notice_file is None or self._noticed or now - self._looked < NOTICE_EVERY_S:
            return self._noticed
        self._looked = now
        self._noticed = self._is_there(self._notice_file)
        if self._noticed:
            try:
                self._on_notice()
            except OSError as error:  # a full disk: the save is worth more than the word
                log.warning("the notice could not be told: %s", error)
        return self._noticed

    def _is_there(self, file: Path) -> bool:
        """Whether `file` exists; not, as long as the file system does not say. The log has the first of such times."""
        try:
            there = file.exists()
        except OSError as error:
            if file not in self._unreadable:
                log.warning("cannot look for %s: %s", file, error)
            self._unreadable.add(file)
            return False
        self._unreadable.discard(file)
        return there


def notice_supervisor(
    config: RunConfig, run: RunDirectory, rank: int, attempt: int, node_id: str | None = None, **more: Any
) -> FileSupervisor:
    """A supervisor that obeys `preemption.notice_file` too, and leaves word of which node it was on."""

    def leave_word() -> None:
        content = {"rank": rank, "host": socket.gethostname(), "node_id": node_id}
        run.logs(attempt).preemption_notice(rank).write_text(json.dumps(content))

    file = config.preemption.notice_file
    return FileSupervisor(notice_file=None if file is None else Path(file), on_notice=leave_word, **more)

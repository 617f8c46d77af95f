"""The progress of a child process, which its parent shows: the parent has the terminal."""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from launcher.console import Progress


@dataclass(frozen=True)
class ProgressCall:
    """A call of a method of the parent's `Progress`, as a message."""

    method: Literal["print", "record"]
    content: Any


class ToParent(Progress):
    """Sends lines and records to the parent. They are lost while the parent does not read."""

    def __init__(self, answer: Connection) -> None:
        super().__init__(sys.stdout)
        self._answer = answer

    def print(self, text: str) -> None:
        """Send a line."""
        self._send(ProgressCall("print", text))

    def stage(self, text: str | None, began: float | None = None) -> None:
        """Stages before the first record are the parent's."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Send a record."""
        if record.get("kind") != "layers":  # large, and not shown
            self._send(ProgressCall("record", dict(record)))

    def _send(self, call: ProgressCall) -> None:
        _, ready, _ = select.select([], [self._answer], [], 0)
        if ready:  # a pipe that is full would stop the training
            self._answer.send(call)

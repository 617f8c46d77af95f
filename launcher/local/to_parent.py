"""What a child process shows: its parent has the terminal."""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from launcher.console import Progress


@dataclass(frozen=True)
class Told:
    """What a person should see: a call of a method of the parent's `Progress`."""

    method: Literal["print", "record"]
    content: Any


class ToParent(Progress):
    """Passes on to the parent, which has the terminal, what is to be seen; lost while the parent does not read."""

    def __init__(self, answer: Connection) -> None:
        super().__init__(sys.stdout)
        self._answer = answer

    def print(self, text: str) -> None:
        """Pass on a line."""
        self._tell(Told("print", text))

    def stage(self, text: str | None, began: float | None = None) -> None:
        """Stages before the first record are the parent's."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Pass on a record."""
        if record.get("kind") != "layers":  # large, and not shown
            self._tell(Told("record", dict(record)))

    def _tell(self, told: Told) -> None:
        _, ready, _ = select.select([], [self._answer], [], 0)
        if ready:  # a pipe that is full would stop the training
            self._answer.send(told)

"""The one door between a training process and whoever watches over it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Protocol


class Request(enum.IntEnum):
    """What a supervisor may ask for at a step boundary; the largest over all workers wins."""

    CONTINUE = 0
    SAVE = 1  # write a checkpoint and go on
    STOP = 2  # write a checkpoint and return


class Supervisor(Protocol):
    """Asked and told by the trainer at step boundaries; every worker has one, and they need not agree."""

    def request(self) -> Request:
        """What this worker has been asked to do. Called once a step: must be cheap and never block."""
        ...

    def checkpoint(self, path: str, step: int) -> None:
        """A checkpoint of `step` completed steps is complete at `path`. Called on rank 0."""
        ...

    def metrics(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl. Called on rank 0."""
        ...


class Unattended:
    """No supervisor: a notebook, a test."""

    def request(self) -> Request:
        """Nobody asks for anything."""
        return Request.CONTINUE

    def checkpoint(self, path: str, step: int) -> None:
        """Nobody listens."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Nobody listens."""

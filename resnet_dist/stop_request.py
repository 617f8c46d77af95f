"""The interface between a training process and the program that supervises it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Supervisor(Protocol):
    """Asks a worker to stop and receives the metrics. Every worker has one; their answers may differ."""

    def stop_requested(self) -> bool:
        """Whether this worker has been asked to save a checkpoint and return.

        The trainer calls it once per step: it must be cheap and never block.
        """
        ...

    def metrics(self, record: Mapping[str, object]) -> None:
        """Receive a record of metrics.jsonl. Called on rank 0."""
        ...


class Unattended:
    """A supervisor that never asks to stop, for notebooks and tests."""

    def stop_requested(self) -> bool:
        """False."""
        return False

    def metrics(self, record: Mapping[str, object]) -> None:
        """Ignore the record."""

"""A run whose workers, records and lease a test writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from resnet_dist.telemetry import json_lines


@pytest.fixture
def write(small_run: RunDirectory) -> Callable[..., None]:
    """Append records to the run's metrics.jsonl."""

    def write(*lists: Any) -> None:
        with small_run.metrics.open("ab") as file:
            for found in lists:
                for record in found if isinstance(found, list) else [found]:
                    file.write(json_lines.encode(record))

    return write


@pytest.fixture
def beat(small_run: RunDirectory) -> Callable[..., None]:
    """Write the heartbeat of a worker."""

    def beat(rank: int, phase: str = "step", step: int = 10, **more: Any) -> None:
        logs = small_run.logs(1)
        logs.heartbeats.mkdir(exist_ok=True, parents=True)
        values = {"host": "n1", "pid": 42, "tick": 3, "age_s": 0.1, **more}
        heartbeats.write(logs, Heartbeat(rank=rank, phase=phase, step=step, **values))

    return beat


@pytest.fixture
def begin(small_run: RunDirectory) -> Callable[..., int]:
    """Begin an attempt."""
    return functools.partial(small_run.begin_attempt, {"place": "local", "workers": 2, "from_step": 0})

"""Calls of one function as Ray tasks. Ray keeps its worker processes between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from launcher.config.schema import RunConfig
from launcher.errors import WorkerLost
from launcher.formatting import printable_lines
from launcher.ray_backend.connection import connect, shut_down
from launcher.signals import StopSignals

A = TypeVar("A")
R = TypeVar("R")


class Tasks(Generic[A, R]):
    """A connection to the cluster that RAY_ADDRESS names, or one started here, and the tasks that run on it.

    `config` says how many CPUs and GPUs a task needs. A task is not tried again: its caller decides.
    """

    def __init__(self, function: Callable[[A], R], config: RunConfig, stop: StopSignals) -> None:
        self._stop = stop
        with stop.kept():
            self._connected_here = connect(config)
        stop.reinstall()
        num_cpus = config.resources.cpus_per_worker * config.workers.most
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": config.resources.gpus_per_worker}
        self._remote = ray.remote(max_retries=0, **options)(function)
        self._running: dict[Any, A] = {}

    def start(self, argument: A) -> None:
        """Call the function with `argument` as soon as there are resources."""
        self._running[self._remote.remote(argument)] = argument

    def ended(self, timeout_s: float) -> list[tuple[A, R | Exception]]:
        """The calls that have ended, with their result or error; waits up to `timeout_s` for the first."""
        ready, _ = ray.wait(list(self._running), timeout=timeout_s)
        return [(self._running.pop(reference), self._result(reference)) for reference in ready]

    def close(self) -> None:
        """Disconnect, and end a cluster that was started here."""
        if self._connected_here:
            shut_down(self._stop)

    def _result(self, reference: Any) -> R | Exception:
        try:
            result: R = ray.get(reference)
        except RayError as error:
            return WorkerLost("its node", 0, printable_lines(error)[0])
        return result

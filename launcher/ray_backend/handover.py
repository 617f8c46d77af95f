"""How a failure is handled inside of a running `fit()`: Ray's controller asks the driver.

A new `fit()` starts five processes besides the workers. If only a worker is lost and the nodes stay the same, Ray can
restart the workers within the running `fit()`, in two thirds of the time. Ray's own retry rules are not used: a
callback in its controller reports every failure to the driver and waits for the answer. The messages go through the
cluster's key-value store, which is consistent on all nodes at once, unlike a shared file system.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray import cloudpickle
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train import UserCallback

from launcher.errors import LauncherError
from launcher.ray_backend.failures import translate_worker_error

ANSWER_S = 120.0  # assumption: a driver that has not answered by then never will; it checks every 0.1 s
POLL_S = 0.05
ATTEMPT = "attempt"  # key of the AttemptSpec of the running attempt
STAGE = "stage"  # key of what Ray's controller does before the workers run, as text
PLACEMENT_GROUP = "placement-group"  # key of that of the workers
_NAMESPACE = b"launcher"


class HandedBack(LauncherError):  # noqa: N818 - reads as what happened
    """The driver continues with another `fit()`."""


class Mailbox:
    """Values by key for one `fit()`, shared by its driver, its controller and its workers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def put(self, key: str, value: object) -> None:
        """Set the value of a key."""
        _internal_kv_put(self._key(key), cloudpickle.dumps(value), overwrite=True, namespace=_NAMESPACE)

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none."""
        found = _internal_kv_get(self._key(key), namespace=_NAMESPACE)
        return None if found is None else cloudpickle.loads(found)

    def clear(self) -> None:
        """Delete all values."""
        _internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, key: str) -> bytes:
        return f"{self._name}/{key}".encode()


class AskDriver(UserCallback):
    """A callback in Ray's controller: reports failures to the driver, and waits for its answer."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box
        self._num_failures = 0

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray after workers have failed. Returns to restart them, or raises HandedBack to end `fit()`."""
        self._num_failures += 1
        failures = {rank: translate_worker_error(rank, error) for rank, error in worker_exceptions.items()}
        self._box.put(failure_key(self._num_failures), failures)
        deadline = time.monotonic() + ANSWER_S
        while (answer := self._box.get(answer_key(self._num_failures))) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not answer:
            raise HandedBack("the driver continues with another fit()")


def failure_key(number: int) -> str:
    """The key of failure `number`, from 1: {rank: exception}."""
    return f"failed-{number}"


def answer_key(number: int) -> str:
    """The key of the answer to failure `number`: whether Ray restarts the workers."""
    return f"answered-{number}"

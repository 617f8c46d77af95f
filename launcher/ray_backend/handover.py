"""How a failure is answered inside a running `fit()`: Ray asks the driver, which asks the policy.

A new `fit()` starts five processes beside the workers; where nothing has changed but that a worker is gone, Ray can
start the workers alone, in two thirds of the time. Its own retries stay out of the decision: a callback in Ray's
controller hands every failure to the driver and waits for the answer. Messages go through the cluster's own store of
keys and values, which is consistent on all nodes at once, as a shared file system is not.
"""

from __future__ import annotations

import time
from typing import Any

from ray import cloudpickle
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train import UserCallback

from launcher.errors import LauncherError

ANSWER_S = 120.0  # assumption: a driver that has not answered by then will not; it looks every 0.1 s
POLL_S = 0.05
_NAMESPACE = b"launcher"


class HandedBack(LauncherError):  # noqa: N818 - reads as what happened
    """The driver goes on from here itself."""


class Mailbox:
    """Values by name for one `fit()`, seen by its driver, its controller and its workers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def put(self, key: str, value: object) -> None:
        """Leave a value, or another one."""
        _internal_kv_put(self._key(key), cloudpickle.dumps(value), overwrite=True, namespace=_NAMESPACE)

    def get(self, key: str) -> Any:
        """The value; None where there is none yet."""
        found = _internal_kv_get(self._key(key), namespace=_NAMESPACE)
        return None if found is None else cloudpickle.loads(found)

    def clear(self) -> None:
        """Forget all values."""
        _internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, key: str) -> bytes:
        return f"{self._name}/{key}".encode()


class AskTheDriver(UserCallback):
    """In Ray's controller: hands a failure to the driver; Ray starts the workers again, or `fit()` ends."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box
        self._num_failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called when workers have failed. Returns where they are to be started again, else raises HandedBack."""
        self._num_failures += 1
        self._box.put(failed(self._num_failures), worker_exceptions)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            answer = self._box.get(answered(self._num_failures))
            if answer is not None:
                if answer:
                    return
                break
            time.sleep(POLL_S)
        raise HandedBack("the driver goes on from here itself")


def failed(number: int) -> str:
    """Under which name the controller leaves its failure number `number`, counted from 1: {rank: exception}."""
    return f"failed-{number}"


def answered(number: int) -> str:
    """And under which the driver leaves the answer: whether Ray starts the workers again."""
    return f"answered-{number}"

"""Errors of Ray's workers: a worker that is lost, and one that raises what Ray cannot send."""

from __future__ import annotations

import pickle
import threading

import pytest
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from launcher.errors import CollectiveFault, DeviceFault, UserCodeError, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.ray_backend.failures import translate_worker_error, worker_error
from launcher.recovery.faults import rule_for
from resnet_dist.errors import DataError


class LockedError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


TASK = RayTaskError("poll_status", "Traceback ...", TypeError("cannot pickle '_thread.lock' object"))


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (LockedError(1, 2), UserCodeError, "LockedError: 1 and 2"),
        (SystemExit(3), UserCodeError, "SystemExit: 3"),
        (WorkerHealthCheckFailedError("failed", TASK), UserCodeError, "TypeError: cannot pickle"),
        (WorkerHealthCheckFailedError("failed", RaySystemError(ValueError("x"))), UserCodeError, "RaySystemError"),
        (TASK, UserCodeError, "TypeError: cannot pickle"),
        (WorkerHealthCheckFailedError("failed", ActorDiedError()), WorkerLost, "worker 3"),
        (WorkerHealthCheckTimeoutError("hanging"), WorkerLost, "worker 3"),
        (DataError("a.jpg", "broken"), DataError, "a.jpg: broken"),
        (RuntimeError("gloo: Connection closed by peer"), CollectiveFault, "worker 3"),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceFault, "worker 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_worker_raises_is_its_own_error_and_what_ended_it_is_a_loss(
    failure: BaseException, kind: type[Exception], message: str
) -> None:
    found = pickle.loads(pickle.dumps(translate_worker_error(3, failure)))
    assert type(found) is kind
    assert str(found).startswith(message)
    again = translate_worker_error(3, found)  # Ray's controller translates before the driver does
    assert (type(again), str(again)) == (kind, str(found))


def test_the_error_of_user_code_is_the_cause_and_exits_with_1() -> None:
    cause = worker_error({0: RuntimeError("gloo: Connection closed by peer"), 1: LockedError(1, 2)}, [])
    assert rule_for(cause).exit_code is ExitCode.USER_CODE
    assert str(cause) == "LockedError: 1 and 2"

"""Errors of Ray's workers: a worker that is lost, and one that raises what Ray cannot send."""

from __future__ import annotations

import pickle
import threading

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    RayError,
    RaySystemError,
    RayTaskError,
    RpcError,
)
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError

from launcher.errors import ClusterUnavailable, CollectiveFault, DeviceFault, LauncherError, UserCodeError, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.ray_backend.failures import ClusterGone, translate_fit_error, translate_worker_error, worker_error
from launcher.recovery.faults import rule_for
from launcher.recovery.portable import traceback_of
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


def actor_died(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = f"{ActorDiedError.BASE_ERROR_MSG}\n\tclass_name: TrainController\n{text}"  # as with a context
    return error


@pytest.mark.parametrize(
    "error",
    [
        RpcError("UNAVAILABLE: failed to connect to all addresses"),
        RaySystemError("Ray has not been started yet."),
        LocalRayletDiedError(),
        ActorUnavailableError("rpc error: connection refused", None),
        actor_died("The actor died because its node has died. Node Id: 4711"),
        actor_died("The actor is dead because its owner has died. Owner Id: 01000000"),
        ConnectionError("GCS is not reachable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_that_shows_it_is_the_end_of_the_cluster(error: BaseException) -> None:
    found = translate_fit_error(error, [])
    assert type(found) is ClusterGone
    assert str(found).startswith(f"the Ray cluster has ended: {type(error).__name__}: ")


def caused() -> BaseException:
    try:
        raise KeyError("key") from OSError(5, "I/O error")
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    ("error", "chain"),
    [
        (caused(), "KeyError: 'key', caused by OSError: [Errno 5] I/O error"),
        (TASK, "TypeError: cannot pickle '_thread.lock' object"),
        (
            RayTaskError("run", "Traceback ...", ConnectionError("in a callback")).as_instanceof_cause(),
            "ConnectionError: in a callback",
        ),
        (RaySystemError(ImportError("no module a"), "Traceback ..."), "RaySystemError: System error: no module a"),
        (GetTimeoutError("after 30 s"), "GetTimeoutError: after 30 s"),
        (RayError("odd"), "RayError: odd"),
        (ControllerError(TypeError("in a callback")), "TypeError: in a callback"),
        (ControllerError(TASK), "TypeError: cannot pickle '_thread.lock' object"),
        (ActorDiedError(TASK), "ActorDiedError: The actor died because of an error raised in its creation task"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unknown_error_is_what_it_is_and_exits_with_70(error: BaseException, chain: str) -> None:
    found = translate_fit_error(error, [])
    assert type(found) is LauncherError
    assert rule_for(found).exit_code is ExitCode.INTERNAL
    assert str(found).startswith(f"Ray Train failed with an unexpected error: {chain}")
    assert found.__notes__ == [traceback_of(getattr(error, "controller_failure", error))]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ControllerError(WorkerGroupStartupFailedError("a node died")), "a node died"),
        (
            actor_died("The actor is dead because its worker process has died."),
            "Ray Train's controller has ended: ActorDiedError: The actor is dead because its worker process has died.",
        ),
    ],
)
def test_a_controller_that_ends_or_starts_no_worker_is_not_the_end_of_the_cluster(
    error: BaseException, message: str
) -> None:
    found = translate_fit_error(error, [])
    assert (type(found), str(found)) == (ClusterUnavailable, message)

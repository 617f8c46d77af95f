"""Errors of a `fit()` as errors of the launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OwnerDiedError,
    RayError,
    RaySystemError,
    RayTaskError,
    RpcError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from launcher.errors import ClusterUnavailable, CollectiveFault, LauncherError, WorkerLost
from launcher.formatting import printable_lines
from launcher.recovery.faults import parse_lost_worker, select_root_cause, translate_error
from launcher.recovery.history import heartbeat_of, missing_worker
from launcher.recovery.portable import message_of, portable, traceback_of
from launcher.run.heartbeats import Heartbeat
from resnet_dist.errors import TrainingError
from resnet_dist.input_files import printable

# Errors of a driver that has lost Ray's GCS, or the raylet or the host of its node.
_GONE = (ActorUnavailableError, LocalRayletDiedError, NodeDiedError, OwnerDiedError, RpcError, ConnectionError)


class NotPlaced(ClusterUnavailable):
    """Ray could not start the workers in time, although the cluster seemed to have enough resources."""


class ClusterGone(ClusterUnavailable):
    """The cluster ended during the run."""

    skip_shutdown = True


@contextlib.contextmanager
def cluster_must_answer() -> Iterator[None]:
    """Raise ClusterGone for an error of Ray in the block, which only queries the cluster."""
    try:
        yield
    except RayError as error:
        raise cluster_gone(error) from error


def cluster_gone(error: BaseException) -> ClusterGone:
    """ClusterGone for the error that shows it."""
    return ClusterGone(f"the Ray cluster has ended: {type(error).__name__}: {printable_lines(error)[0]}")


def translate_fit_error(error: BaseException, beats: Sequence[Heartbeat]) -> Exception:
    """The root cause of an error of `fit()`; `beats` are the last heartbeats of the workers."""
    if isinstance(error, WorkerGroupError):
        return worker_error(error.worker_failures, beats)
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if "StartupTimeout" in type(failure).__name__:
            return NotPlaced(f"the workers could not be started in time: {printable(str(failure)).split('. ')[0]}")
        if isinstance(failure, TrainingError | LauncherError):
            return failure
        is_rays = type(failure).__module__.partition(".")[0] == "ray" and not isinstance(failure, RayTaskError)
        return ClusterUnavailable(printable(str(failure))) if is_rays else _unexpected(failure)
    if isinstance(error, TrainingFailedError):
        return ClusterUnavailable(printable(str(error)))
    if _shows_no_cluster(error):
        return cluster_gone(error)
    if isinstance(error, ActorDiedError) and not error.actor_init_failed:
        return ClusterUnavailable(f"Ray Train's controller has ended: ActorDiedError: {printable_lines(error)[-1]}")
    return _unexpected(error)


def _shows_no_cluster(error: BaseException) -> bool:
    """Whether an error of `fit()` says that the connection of this process to the cluster is lost."""
    if isinstance(error, RayTaskError):  # raised by code in the controller, of any class
        return False
    if isinstance(error, ActorDiedError):
        return any(text in str(error) for text in ("its node has died", "its owner has died", "GCS"))  # owner: this one
    if isinstance(error, RaySystemError):
        return error.traceback_str is None  # else the answer has come, and cannot be unpickled
    return isinstance(error, _GONE)


def _unexpected(error: BaseException) -> LauncherError:
    """An error that says nothing of the cluster or of a worker, with its causes: exit code 70."""
    chain: list[BaseException] = []
    cause = (isinstance(error, RayTaskError) and error.cause) or error
    while isinstance(cause, BaseException) and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    causes = [f"{type(one).__name__}: {printable_lines(message_of(one))[0]}" for one in chain]
    found = LauncherError(f"Ray Train failed with an unexpected error: {', caused by '.join(causes)}")
    found.add_note(traceback_of(error))
    return found


def worker_error(failures: Mapping[int, BaseException], beats: Sequence[Heartbeat]) -> Exception:
    """The root cause among the errors of the workers, by rank."""
    translated = {rank: translate_worker_error(rank, failure) for rank, failure in failures.items()}
    _, cause = select_root_cause(translated)
    if isinstance(cause, CollectiveFault):  # reported by the remaining workers: find the missing one
        cause = missing_worker(beats) or cause
    if isinstance(cause, WorkerLost) and cause.node_id is None and (beat := heartbeat_of(cause, beats)) is not None:
        cause = WorkerLost(beat.host, cause.rank, cause.problem, beat.node_id)
    assert isinstance(cause, Exception)
    return cause


def translate_worker_error(rank: int, failure: BaseException) -> LauncherError | TrainingError:
    """The error of a worker as a `portable` one: a lost worker, or what the worker raised itself.

    Ray reports both in classes of its own: an exception that cannot be sent is no lost worker.
    """
    if "HealthCheck" in type(failure).__name__ or isinstance(failure, RayError):
        inner = getattr(failure, "health_check_failure", None) or failure
        if not isinstance(inner, RayTaskError | RaySystemError):
            return parse_lost_worker(rank, f"{failure}\n{inner}")
        failure = getattr(inner, "cause", None) or inner
    return portable(translate_error(failure, rank, getattr(failure, "host", "its host")))

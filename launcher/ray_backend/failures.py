"""Errors of a `fit()` as errors of the launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from launcher.errors import ClusterUnavailable, CollectiveFault, LauncherError, WorkerLost
from launcher.recovery.faults import parse_lost_worker, select_root_cause, translate_error
from launcher.recovery.history import heartbeat_of, missing_worker
from launcher.run.heartbeats import Heartbeat
from resnet_dist.errors import TrainingError


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
    return ClusterGone(f"the Ray cluster has ended: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")


def translate_fit_error(error: BaseException, beats: Sequence[Heartbeat]) -> Exception:
    """The root cause of an error of `fit()`; `beats` are the last heartbeats of the workers."""
    if isinstance(error, WorkerGroupError):
        return worker_error(error.worker_failures, beats)
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if "StartupTimeout" in type(failure).__name__:
            return NotPlaced(f"the workers could not be started in time: {str(failure).split('. ')[0]}")
        return failure if isinstance(failure, TrainingError | LauncherError) else ClusterUnavailable(str(failure))
    if isinstance(error, TrainingFailedError):
        return ClusterUnavailable(str(error))
    return cluster_gone(error)


def worker_error(failures: Mapping[int, BaseException], beats: Sequence[Heartbeat]) -> Exception:
    """The root cause among the errors of the workers, by rank."""
    rank, cause = select_root_cause({rank: _translate(rank, failure) for rank, failure in failures.items()})
    if isinstance(cause, CollectiveFault):  # reported by the remaining workers: find the missing one
        cause = missing_worker(beats) or cause
    if isinstance(cause, WorkerLost) and cause.node_id is None and (beat := heartbeat_of(cause, beats)) is not None:
        cause = WorkerLost(beat.host, cause.rank, cause.problem, beat.node_id)
    return cause if isinstance(cause, Exception) else WorkerLost("an unknown host", rank, str(cause))


def _translate(rank: int, failure: BaseException) -> BaseException:
    if "HealthCheck" in type(failure).__name__ or type(failure).__module__.startswith("ray."):
        return parse_lost_worker(rank, f"{failure}\n{getattr(failure, 'health_check_failure', '')}")
    return translate_error(failure, rank, getattr(failure, "host", "its host"))

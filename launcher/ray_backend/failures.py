"""What went wrong in a `fit()`, in our own words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from launcher.errors import ClusterUnavailable, CollectiveFault, LauncherError, WorkerLost
from launcher.recovery.faults import in_our_words, lost_worker, true_cause
from launcher.recovery.history import gone
from launcher.run.heartbeats import Beat
from resnet_dist.errors import TrainingError


class NotPlaced(ClusterUnavailable):
    """Ray could not start the workers in time, although there seemed to be room for them."""


class ClusterGone(ClusterUnavailable):
    """The cluster ended under the run."""

    gone = True


@contextlib.contextmanager
def cluster_must_answer() -> Iterator[None]:
    """Raise ClusterGone for an error of Ray's inside the block: it is asked for nothing but what the cluster knows."""
    try:
        yield
    except RayError as error:
        raise gone_with(error) from error


def gone_with(error: BaseException) -> ClusterGone:
    """The end of the cluster, by the error that shows it."""
    return ClusterGone(f"the Ray cluster is gone: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")


def in_words(error: BaseException, beats: Sequence[Beat]) -> Exception:
    """The error that began it; `beats` are the workers' last heartbeats."""
    if isinstance(error, WorkerGroupError):
        return of_workers(error.worker_failures, beats)
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if "StartupTimeout" in type(failure).__name__:
            return NotPlaced(f"the workers could not be started in time: {str(failure).split('. ')[0]}")
        return failure if isinstance(failure, TrainingError | LauncherError) else ClusterUnavailable(str(failure))
    if isinstance(error, TrainingFailedError):
        return ClusterUnavailable(str(error))
    return gone_with(error)


def of_workers(failures: Mapping[int, BaseException], beats: Sequence[Beat]) -> Exception:
    """The error that began it, of one a rank."""
    rank, cause = true_cause({rank: _of_worker(rank, failure) for rank, failure in failures.items()})
    if isinstance(cause, CollectiveFault):  # what the others see of one that ended: which one did?
        cause = gone(beats, "ended without a word; the others lost their connection to it") or cause
    if isinstance(cause, WorkerLost) and cause.node_id is None:
        cause = _placed(cause, beats)
    return cause if isinstance(cause, Exception) else WorkerLost("an unknown host", rank, str(cause))


def _of_worker(rank: int, failure: BaseException) -> BaseException:
    if "HealthCheck" in type(failure).__name__ or type(failure).__module__.startswith("ray."):
        return lost_worker(rank, f"{failure}\n{getattr(failure, 'health_check_failure', '')}")
    return in_our_words(failure, rank, getattr(failure, "host", "its host"))


def _placed(lost: WorkerLost, beats: Sequence[Beat]) -> WorkerLost:
    """A lost worker with the host and node that its heartbeat names."""
    beat = next((beat for beat in beats if beat.rank == lost.rank), None)
    return lost if beat is None else WorkerLost(beat.host, lost.rank, lost.problem, beat.node_id, lost.ip)

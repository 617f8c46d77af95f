"""The two requests to SLURM, Kubernetes and Ray's job server: the status of a job, and stop it.

A scheduler reports why a job waits, and whether it still exists. The run directory shows what the run has done. Nothing
is sent because of a record that somebody else may have written. `address` is that of Ray's job server, if the user
gives one.
"""

from __future__ import annotations

from cluster.kubernetes.names import run_name
from launcher.errors import UsageError
from launcher.places import kubernetes as kubernetes_jobs
from launcher.places import slurm as slurm_jobs
from launcher.places.programs import PlaceUnavailable
from launcher.ray_backend import jobs as ray_jobs
from launcher.run import submissions
from launcher.run.submissions import JobStatus, Submission


def rayjob(run: str, namespace: str, context: str | None) -> Submission:
    """A submission of the run `run` to Kubernetes, now. Raises UsageError if `context` is not a name."""
    try:
        details = {"namespace": namespace} | ({} if context is None else {"context": context})
        return submissions.now("kubernetes", run_name(run), details)
    except ValueError:
        raise UsageError(f"--context {context!r}: not a context's name. Allowed: kubectl config get-contexts") from None


def ask(submission: Submission, address: str | None = None) -> JobStatus:
    """The status of a submitted job; `unreachable` if the scheduler does not answer: the job may be in any state."""
    if submission.distrust:
        return JobStatus("unreachable", f"{submission} was not looked up: {submission.distrust}")
    try:
        match submission.place:
            case "slurm":
                return slurm_jobs.ask(submission.id)
            case "kubernetes":
                return kubernetes_jobs.ask(submission.id, *_cluster(submission))
            case "ray":
                return ray_jobs.ask(submission.id, submission.details.get("address"), address)
    except PlaceUnavailable as error:
        return JobStatus("unreachable", error.in_one_line())


def stop(submission: Submission, *, save: bool, address: str | None = None) -> str:
    """Stop a job, with a checkpoint or at once; returns a message about it.

    Raises ClusterUnavailable, UsageError for a record that is not trusted.
    """
    if submission.distrust:
        raise UsageError(f"{submission} was not stopped: {submission.distrust}")
    try:
        match submission.place:
            case "slurm":
                return slurm_jobs.stop(submission.id, save=save)
            case "kubernetes":
                return kubernetes_jobs.stop(submission.id, *_cluster(submission), save=save)
            case "ray":
                return ray_jobs.stop(submission.id, submission.details.get("address"), address)
    except PlaceUnavailable as error:
        raise error.but(f"{submission} may still run: use the same command again") from None


def _cluster(submission: Submission) -> tuple[str, str | None]:
    """The namespace of a submission to Kubernetes, and kubectl's context."""
    return submission.details.get("namespace", "default"), submission.details.get("context")

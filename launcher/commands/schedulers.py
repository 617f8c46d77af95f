"""The two requests to SLURM, Kubernetes and Ray's job server: the status of a job, and stop it.

A scheduler reports why a job waits, and whether it still exists. The run directory shows what the run has done. Nothing
is sent because of a record that somebody else may have written. `address` is that of Ray's job server, if the user
gives one.
"""

from __future__ import annotations

from cluster.kubernetes.names import run_name
from launcher.errors import UsageError
from launcher.places.programs import PlaceUnavailable
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
    details = submission.details
    if submission.distrust:
        return JobStatus("unreachable", f"{submission} was not looked up: {submission.distrust}")
    try:
        match submission.place:
            case "slurm":
                from launcher.places import slurm as slurm_jobs

                return slurm_jobs.ask(submission.id)
            case "kubernetes":
                from launcher.places import kubernetes as kubernetes_jobs

                return kubernetes_jobs.ask(submission.id, details.get("namespace", "default"), details.get("context"))
            case "ray":
                from launcher.ray_backend import jobs as ray_jobs

                return ray_jobs.ask(submission.id, details.get("address"), address)
    except PlaceUnavailable as error:
        return JobStatus("unreachable", error.in_one_line())


def stop(submission: Submission, *, save: bool, address: str | None = None) -> str:
    """Stop a job, with a checkpoint or at once; returns a message about it.

    Raises ClusterUnavailable, UsageError for a record that is not trusted.
    """
    details = submission.details
    if submission.distrust:
        raise UsageError(f"{submission} was not stopped: {submission.distrust}")
    try:
        match submission.place:
            case "slurm":
                from launcher.places import slurm as slurm_jobs

                return slurm_jobs.stop(submission.id, save=save)
            case "kubernetes":
                from launcher.places import kubernetes as kubernetes_jobs

                namespace, context = details.get("namespace", "default"), details.get("context")
                return kubernetes_jobs.stop(submission.id, namespace, context, save=save)
            case "ray":
                from launcher.ray_backend import jobs as ray_jobs

                return ray_jobs.stop(submission.id, details.get("address"), address)
    except PlaceUnavailable as error:
        raise error.but(f"{submission} may still run: use the same command again") from None

"""The two requests to SLURM, Kubernetes and Ray's job server: the status of a job, and stop it.

A scheduler reports why a job waits, and whether it still exists. The run directory shows what the run has done.
"""

from __future__ import annotations

from launcher.errors import ClusterUnavailable
from launcher.run.submissions import JobStatus, Submission


def ask(submission: Submission) -> JobStatus:
    """The status of a submitted job; `unreachable` if the scheduler does not answer."""
    details = submission.details
    try:
        match submission.place:
            case "slurm":
                from launcher.places import slurm as slurm_jobs

                return slurm_jobs.ask(submission.id)
            case "kubernetes":
                from launcher.places import kubernetes as kubernetes_jobs

                return kubernetes_jobs.ask(submission.id, details.get("namespace", ""), details.get("context"))
            case "ray":
                from launcher.ray_backend import jobs as ray_jobs

                return ray_jobs.ask(submission.id, details.get("address"))
    except ClusterUnavailable as error:
        return JobStatus("unreachable", str(error))


def stop(submission: Submission, *, save: bool) -> str:
    """Stop a job, with a checkpoint or at once; returns a message about it. Raises ClusterUnavailable."""
    details = submission.details
    match submission.place:
        case "slurm":
            from launcher.places import slurm as slurm_jobs

            return slurm_jobs.stop(submission.id, save=save)
        case "kubernetes":
            from launcher.places import kubernetes as kubernetes_jobs

            return kubernetes_jobs.stop(submission.id, details.get("namespace", ""), details.get("context"), save=save)
        case "ray":
            from launcher.ray_backend import jobs as ray_jobs

            return ray_jobs.stop(submission.id, details.get("address"))

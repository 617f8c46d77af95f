"""SLURM, Kubernetes and Ray's job server, asked the same two things: what of this job, and stop it.

They are asked for the reason that a job waits, and whether it is still there. What a run has done, and how it ended, is
read in its run directory.
"""

from __future__ import annotations

from launcher.errors import ClusterUnavailable
from launcher.run.submissions import JobStatus, Submission


def ask(submission: Submission) -> JobStatus:
    """What the place says of a submission; never raises for a place that does not answer."""
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
    """End a job, with a checkpoint or at once; returns what was done, for a person. Raises ClusterUnavailable."""
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

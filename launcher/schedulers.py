"""SLURM, Kubernetes and Ray's job server, asked the same two things: what of this job, and stop it.

They are asked for the reason that a job waits, and whether it is still there. What a run has done, and how it ended, is
read in its run directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.errors import ClusterUnavailable
from launcher.submissions import Submission

WordState = Literal["pending", "running", "gone", "unreachable"]


@dataclass(frozen=True)
class Word:
    """What a place says of a job.

    `unreachable` is no answer: the job may be well. `exit_code` is the driver's own, where the place knows it.
    """

    state: WordState
    reason: str = ""
    exit_code: int | None = None


def ask(submission: Submission) -> Word:
    """What the place says of a submission; never raises for a place that does not answer."""
    details = submission.details
    try:
        match submission.place:
            case "slurm":
                from launcher import slurm_jobs

                return slurm_jobs.ask(submission.id)
            case "kubernetes":
                from launcher import kubernetes_jobs

                return kubernetes_jobs.ask(submission.id, details.get("namespace", ""), details.get("context"))
            case "ray":
                from launcher import ray_jobs

                return ray_jobs.ask(submission.id, details.get("address"))
    except ClusterUnavailable as error:
        return Word("unreachable", str(error))


def stop(submission: Submission, *, save: bool) -> str:
    """End a job, with a checkpoint or at once; returns what was done, for a person. Raises ClusterUnavailable."""
    details = submission.details
    match submission.place:
        case "slurm":
            from launcher import slurm_jobs

            return slurm_jobs.stop(submission.id, save=save)
        case "kubernetes":
            from launcher import kubernetes_jobs

            return kubernetes_jobs.stop(submission.id, details.get("namespace", ""), details.get("context"), save=save)
        case "ray":
            from launcher import ray_jobs

            return ray_jobs.stop(submission.id, details.get("address"))

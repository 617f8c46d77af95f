"""SLURM jobs, through sbatch, squeue, scancel and scontrol."""

from __future__ import annotations

import re

from cluster.errors import PlaceError, Problem
from launcher.errors import ClusterUnavailable
from launcher.places.programs import Answer, call, is_installed
from launcher.run.submissions import JobStatus

# Messages of sbatch (tried: SLURM 22.05), and the key that each is about. Other messages are shown without a key.
_REFUSALS = (
    (r"invalid partition", "partition", "a partition that sinfo lists"),
    (r"invalid account|account/partition combination", "account", "one of your accounts: sacctmgr show associations"),
    (r"invalid qos", "qos", "a QOS of your account: sacctmgr show qos"),
    (r"invalid feature", "constraint", "features that `sinfo -o '%P %f'` lists"),
    (r"invalid generic resource|gres", "gpus", "the GPUs that `sinfo -o '%P %G'` lists, in the form the site uses"),
    (r"time limit", "cluster.walltime", "at most the partition's limit: sinfo -o '%P %l'"),
    (r"memory", "memory", "at most the memory of a node: sinfo -o '%P %m'"),
    (
        r"node configuration is not available|more processors|node count|nodes .*unavailable",
        "cluster.nodes",
        "as many nodes, and per node as many CPUs and GPUs, as the partition has: sinfo -o '%P %D %c %G'",
    ),
)
_UNREACHABLE = re.compile(
    r"unable to contact|connection (refused|timed out)|socket timed out|could not establish", re.I
)
_UNKNOWN_JOB = re.compile(r"invalid job id|job/step already completing or completed|does not exist", re.I)

_ACTIVE = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"}
_WAITING = {
    "PENDING": "",
    "CONFIGURING": "its nodes are being prepared",
    "REQUEUED": "requeued",
    "REQUEUE_FED": "requeued",
    "REQUEUE_HOLD": "requeued, and held: scontrol release",
    "SPECIAL_EXIT": "requeued after a special exit, and held: scontrol release",
    "RESV_DEL_HOLD": "its reservation was deleted: scontrol release",
    "SUSPENDED": "suspended",
    "STOPPED": "stopped by a signal",
}
# Explanations of squeue's reasons (man squeue, "JOB REASON CODES").
_REASONS = {
    "Priority": "jobs with a higher priority come first",
    "Resources": "the nodes that it needs are in use",
    "BeginTime": "SLURM delays the restart of a requeued job",
    "Dependency": "another job must end first",
    "JobHeldUser": "held by its owner: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "a license is in use",
    "PartitionConfig": "it requests more than the partition has: it will not start",
    "PartitionNodeLimit": "it requests more nodes than the partition allows: it will not start",
    "PartitionTimeLimit": "its walltime is above the partition's limit: it will not start",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "a node that it requests is down, drained or reserved",
    "Reservation": "its reservation has not begun",
    "NodeDown": "a node that it needs is down",
    "launch_failed_requeued_held": "its start failed; held: scontrol release",
}


def check(script: str) -> None:
    """Validate `script` with `sbatch --test-only`, which also refuses a job that can never start.

    Raises PlaceError with the key of the config or profile; ClusterUnavailable if SLURM cannot be reached.
    """
    answer = call("sbatch", "--test-only", given=script)
    if answer.code != 0:
        raise _refusal("sbatch --test-only", answer)


def submit(script: str, output: str | None = None) -> str:
    """Submit `script` and return the job's id. `output` replaces the script's own output file.

    Raises as `check` does.
    """
    options = [] if output is None else [f"--output={output}"]
    answer = call("sbatch", "--parsable", *options, given=script)
    job = answer.out.strip().partition(";")[0]  # JOB, or JOB;CLUSTER
    if answer.code != 0 or not job.isdigit():
        raise _refusal("sbatch", answer)
    return job


def ask(job: str) -> JobStatus:
    """The status of a job. Raises ClusterUnavailable if squeue does not finish in time."""
    if not is_installed("squeue"):
        return JobStatus("unreachable", "squeue is not on this machine")
    answer = call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")
    if answer.code != 0:
        if _UNKNOWN_JOB.search(answer.err):
            return JobStatus("gone", f"SLURM has no record of job {job}")
        return JobStatus("unreachable", answer.problem)
    lines = [line.partition("|") for line in answer.out.splitlines() if line.strip()]
    states = [(state.strip(), reason.strip()) for state, _, reason in lines]
    for state, _ in states:
        if state in _ACTIVE:
            return JobStatus("running", state.lower())
    for state, reason in states:
        if state in _WAITING:
            return JobStatus("pending", ": ".join(text for text in (_WAITING[state], reason_in_words(reason)) if text))
    return JobStatus("gone", f"SLURM reports {states[0][0]}" if states else f"SLURM does not list job {job}")


def stop(job: str, *, save: bool) -> str:
    """Stop a job without a requeue, and describe what happens. Raises ClusterUnavailable.

    With `save`, the job has its profile's notice to save a checkpoint. The script requeues itself after a notice, so
    requeueing is disabled in SLURM first.
    """
    state = ask(job)
    if state.state == "gone":
        return f"slurm job {job}: {state.reason}; nothing to stop"
    if state.state == "pending":
        _done(call("scancel", job))
        return f"slurm job {job} was pending and is cancelled"
    if save:
        held = call("scontrol", "update", f"JobId={job}", "Requeue=0")
        if held.code == 0 and call("scancel", "--signal=USR2", "--batch", job).code == 0:
            return f"slurm job {job} saves and exits; it is not requeued"
        _done(call("scancel", job))
        return f"slurm job {job} is cancelled: it can save during SLURM's KillWait"
    # Only the batch shell, which coordinates the save. To a whole job, SLURM 22.05 sends TERM first (tried).
    call("scontrol", "update", f"JobId={job}", "Requeue=0")
    call("scancel", "--signal=KILL", "--batch", job)
    _done(call("scancel", job))
    return f"slurm job {job} is killed; its newest checkpoint remains, and the folders rl-{job}-* in its nodes' scratch"


def reason_in_words(reason: str) -> str:
    """squeue's reason with an explanation: `the nodes that it needs are in use (Resources)`."""
    reason = reason.strip("()")
    if reason in ("", "None"):
        return ""
    # Some reasons have details: "ReqNodeNotAvail, UnavailableNodes:n3"
    explanation = _REASONS.get(re.split(r"[,:]", reason)[0].strip())
    return reason if explanation is None else f"{explanation} ({reason})"


def _done(answer: Answer) -> None:
    if answer.code != 0 and not _UNKNOWN_JOB.search(answer.err):
        raise ClusterUnavailable(f"scancel: {answer.problem}")


def _refusal(program: str, answer: Answer) -> ClusterUnavailable | PlaceError:
    message = re.sub(r"^(sbatch: )?(error|fatal): ", "", answer.problem)
    message = re.sub(r"^(allocation failure|Batch job submission failed): ", "", message)
    if _UNREACHABLE.search(answer.err):
        return ClusterUnavailable(f"{program}: {message}")
    for pattern, key, allowed in _REFUSALS:
        if re.search(pattern, answer.err, re.IGNORECASE):
            return PlaceError([Problem("", key, f"{program} refuses it: {message}", allowed)])
    return PlaceError([Problem("", "", f"{program} refuses it: {message}", "what `man sbatch` describes")])

"""Jobs of SLURM, through its own programs: sbatch, squeue, scancel, scontrol."""

from __future__ import annotations

import re

from cluster.errors import Mismatch, PlaceError
from launcher.errors import ClusterUnavailable
from launcher.places.programs import Answer, call, is_installed
from launcher.run.submissions import JobStatus

# What sbatch says (tried: SLURM 22.05), and the key that it speaks of. The rest stays in its own words.
_REFUSALS = (
    (r"invalid partition", "partition", "a partition that sinfo lists"),
    (r"invalid account|account/partition combination", "account", "an account of yours: sacctmgr show associations"),
    (r"invalid qos", "qos", "a QOS that your account has: sacctmgr show qos"),
    (r"invalid feature", "constraint", "features that `sinfo -o '%P %f'` lists"),
    (r"invalid generic resource|gres", "gpus", "the GPUs that `sinfo -o '%P %G'` lists, asked for as the site does"),
    (r"time limit", "cluster.walltime", "no more than the partition's limit: sinfo -o '%P %l'"),
    (r"memory", "memory", "what a node has: sinfo -o '%P %m'"),
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
# squeue's reasons (man squeue, "JOB REASON CODES") in words.
_REASONS = {
    "Priority": "jobs of a higher priority come first",
    "Resources": "the nodes that it needs are in use",
    "BeginTime": "SLURM lets a requeued job wait before it starts again",
    "Dependency": "another job must end first",
    "JobHeldUser": "held by its owner: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "a license is in use",
    "PartitionConfig": "it asks for more than the partition has: it will not start",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: it will not start",
    "PartitionTimeLimit": "its walltime is above the partition's limit: it will not start",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "a node that it asks for is down, drained or reserved",
    "Reservation": "its reservation has not begun",
    "NodeDown": "a node that it needs is down",
    "launch_failed_requeued_held": "its start failed; held: scontrol release",
}


def check(script: str) -> None:
    """Ask sbatch whether it would take `script`. A job that can never start is found here, and nowhere else.

    Raises PlaceError with what it refuses, under the key of config or profile; ClusterUnavailable where there is no
    answer.
    """
    answer = call("sbatch", "--test-only", given=script)
    if answer.code != 0:
        raise _refusal("sbatch --test-only", answer)


def submit(script: str, output: str | None = None) -> str:
    """Submit `script`; returns the job's id. `output` is the file for what it prints, instead of the script's own.

    Raises as `check` does.
    """
    options = [] if output is None else [f"--output={output}"]
    answer = call("sbatch", "--parsable", *options, given=script)
    job = answer.out.strip().partition(";")[0]  # JOB, or JOB;CLUSTER
    if answer.code != 0 or not job.isdigit():
        raise _refusal("sbatch", answer)
    return job


def ask(job: str) -> JobStatus:
    """What SLURM says of a job. Raises ClusterUnavailable where squeue is not here or does not end."""
    if not is_installed("squeue"):
        return JobStatus("unreachable", "squeue is not on this machine")
    answer = call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")
    if answer.code != 0:
        if _UNKNOWN_JOB.search(answer.err):
            return JobStatus("gone", f"SLURM has forgotten job {job}")
        return JobStatus("unreachable", answer.problem)
    lines = [line.partition("|") for line in answer.out.splitlines() if line.strip()]
    states = [(state.strip(), reason.strip()) for state, _, reason in lines]
    for state, _ in states:
        if state in _ACTIVE:
            return JobStatus("running", state.lower())
    for state, reason in states:
        if state in _WAITING:
            return JobStatus("pending", ": ".join(text for text in (_WAITING[state], reason_in_words(reason)) if text))
    return JobStatus("gone", f"SLURM says {states[0][0]}" if states else f"SLURM does not list job {job}")


def stop(job: str, *, save: bool) -> str:
    """End a job for good. `save`: with a checkpoint, for which it has the notice that its profile gives it.

    The script requeues itself when a notice comes; SLURM is told first that it must not. Raises ClusterUnavailable.
    """
    state = ask(job)
    if state.state == "gone":
        return f"slurm job {job}: {state.reason}; nothing to end"
    if state.state == "pending":
        _done(call("scancel", job))
        return f"slurm job {job} was waiting and is cancelled"
    if save:
        held = call("scontrol", "update", f"JobId={job}", "Requeue=0")
        if held.code == 0 and call("scancel", "--signal=USR2", "--batch", job).code == 0:
            return f"slurm job {job} saves and ends; it is not requeued"
        _done(call("scancel", job))
        return f"slurm job {job} is cancelled: it saves as long as SLURM's KillWait lets it"
    # Only the shell, which cannot save without itself: to all of a job, SLURM 22.05 sends TERM first (tried).
    call("scontrol", "update", f"JobId={job}", "Requeue=0")
    call("scancel", "--signal=KILL", "--batch", job)
    _done(call("scancel", job))
    return f"slurm job {job} is killed; its newest checkpoint counts. Its folder rl-{job}-* stays in its nodes' scratch"


def reason_in_words(reason: str) -> str:
    """squeue's reason for a person: `Resources` becomes `the nodes that it needs are in use (Resources)`."""
    reason = reason.strip("()")
    if reason in ("", "None"):
        return ""
    # Some carry more: "ReqNodeNotAvail, UnavailableNodes:n3"
    words = _REASONS.get(re.split(r"[,:]", reason)[0].strip())
    return reason if words is None else f"{words} ({reason})"


def _done(answer: Answer) -> None:
    if answer.code != 0 and not _UNKNOWN_JOB.search(answer.err):
        raise ClusterUnavailable(f"scancel: {answer.problem}")


def _refusal(program: str, answer: Answer) -> ClusterUnavailable | PlaceError:
    said = re.sub(r"^(sbatch: )?(error|fatal): ", "", answer.problem)
    said = re.sub(r"^(allocation failure|Batch job submission failed): ", "", said)
    if _UNREACHABLE.search(answer.err):
        return ClusterUnavailable(f"{program}: {said}")
    for pattern, key, allowed in _REFUSALS:
        if re.search(pattern, answer.err, re.IGNORECASE):
            return PlaceError([Mismatch("", key, f"{program} refuses it: {said}", allowed)])
    return PlaceError([Mismatch("", "", f"{program} refuses it: {said}", "what `man sbatch` describes")])

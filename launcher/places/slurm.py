"""SLURM jobs, through sbatch, squeue, scancel, scontrol and sacct."""

from __future__ import annotations

import re

from cluster.errors import PlaceError, Problem
from launcher.places import programs
from launcher.places.programs import (
    Answer,
    NotAnswered,
    PlaceUnavailable,
    call,
    call_once,
    is_installed,
    until_answered,
)
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
_UNKNOWN_JOB = re.compile(r"invalid job id|job/step already completing or completed|does not exist", re.I)

_FIELDS = {"State": 32, "RestartCnt": 16, "Reason": 256}  # of squeue, with their widths

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
    answer = call("sbatch", "--test-only", given=script, limit_s=programs.SUBMIT_LIMIT_S)
    if answer.code != 0:
        raise _refusal("sbatch --test-only", answer)


def submit(script: str, name: str, output: str | None = None) -> str:
    """Submit `script`, whose job is called `name`; returns the job's id. `output` replaces the script's output file.

    It is submitted once: after a call of sbatch without an answer, the job is only looked for, by its name. SLURM may
    still take it after it has answered others (tried: a controller that was stopped for 15 s).
    Raises as `check` does; the message says whether a job was submitted.
    """
    options = [] if output is None else [f"--output={output}"]
    lost = False  # a call of sbatch without an answer, which may have submitted the job

    def once() -> str:
        nonlocal lost
        if lost:
            new = _my_jobs(name, limit_s=0.0) - before
            if not new:
                raise NotAnswered("sbatch: SLURM", f"squeue lists no new job named {name}")
            return max(new, key=int)
        try:
            answer = call_once("sbatch", "--parsable", *options, given=script)
        except NotAnswered as error:
            lost = lost or error.maybe_arrived
            raise
        if answer.code != 0:
            raise _refusal("sbatch", answer)
        found = re.search(r"^(\d+)(;\S*)?$", answer.out, re.MULTILINE)  # JOB, or JOB;CLUSTER
        if found is None:
            lost = True
            raise PlaceUnavailable("sbatch: there is no job id in its output", answer.out + answer.err)
        return found[1]

    try:
        before = _my_jobs(name)
        return until_answered(once, programs.SUBMIT_LIMIT_S)
    except PlaceUnavailable as error:
        unknown = f"the job may have been submitted. Before another try, see: squeue --me --name={name}"
        raise error.but(unknown if lost else "nothing was submitted") from None


def ask(job: str) -> JobStatus:
    """The status of a job. Raises ClusterUnavailable without an answer of SLURM: then nothing is known."""
    fields = ",".join(f"{name}:{width}" for name, width in _FIELDS.items())
    answer = call("squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={fields}")
    if answer.code != 0 and not _UNKNOWN_JOB.search(answer.err):
        raise PlaceUnavailable(f"squeue: the state of job {job} is unknown", answer.text)
    tasks = [_columns(line) for line in answer.out.splitlines() if line.strip()] if answer.code == 0 else []
    for state, _, _ in tasks:
        if state in _ACTIVE:
            return JobStatus("running", state.lower())
    for state, restarts, reason in tasks:
        if state in _WAITING:
            again = f"requeued, restart {restarts}" if restarts.strip("0").isdigit() else _WAITING[state]
            return JobStatus("pending", ": ".join(text for text in (again, reason_in_words(reason)) if text))
    if tasks:
        return JobStatus("gone", f"SLURM reports {tasks[0][0]}")
    return _accounted(job)


def stop(job: str, *, save: bool) -> str:
    """Stop a job without a requeue, and describe what happens. Raises ClusterUnavailable.

    With `save`, the job has its profile's notice to save a checkpoint. The script requeues itself after a notice, so
    requeueing is disabled in SLURM first.
    """
    state = ask(job)
    if state.state == "gone":
        return f"slurm job {job}: {state.reason}; nothing to stop"
    if state.state == "pending":
        _done(call("scancel", "--", job))
        return f"slurm job {job} was pending and is cancelled"
    if save:
        held = call("scontrol", "update", f"JobId={job}", "Requeue=0")
        if held.code == 0 and call("scancel", "--signal=USR2", "--batch", "--", job).code == 0:
            return f"slurm job {job} saves and exits; it is not requeued"
        _done(call("scancel", "--", job))
        return f"slurm job {job} is cancelled: it can save during SLURM's KillWait"
    # Only the batch shell, which coordinates the save. To a whole job, SLURM 22.05 sends TERM first (tried).
    call("scontrol", "update", f"JobId={job}", "Requeue=0")
    call("scancel", "--signal=KILL", "--batch", "--", job)
    _done(call("scancel", "--", job))
    return f"slurm job {job} is killed; its newest checkpoint remains, and the folders rl-{job}-* in its nodes' scratch"


def reason_in_words(reason: str) -> str:
    """squeue's reason with an explanation: `the nodes that it needs are in use (Resources)`."""
    reason = reason.strip("()")
    if reason in ("", "None"):
        return ""
    # Some reasons have details: "ReqNodeNotAvail, UnavailableNodes:n3"
    explanation = _REASONS.get(re.split(r"[,:]", reason)[0].strip())
    return reason if explanation is None else f"{explanation} ({reason})"


def _my_jobs(name: str, limit_s: float | None = None) -> set[str]:
    """The ids of this user's jobs in SLURM with that name; an array has one."""
    answer = call("squeue", "--me", "--noheader", "--states=all", f"--name={name}", "--format=%F", limit_s=limit_s)
    if answer.code != 0:
        raise PlaceUnavailable(f"squeue: your jobs named {name} cannot be listed", answer.text)
    return {word for word in answer.out.split() if word.isdigit()}


def _columns(line: str) -> list[str]:
    """The fields of a line of squeue."""
    fields, start = [], 0
    for width in _FIELDS.values():
        fields.append(line[start : start + width].strip())
        start += width
    return fields


def _accounted(job: str) -> JobStatus:
    """The status of a job that the controller does not list: it has ended, and accounting may know how."""
    gone = f"SLURM has no record of job {job}"
    if not is_installed("sacct"):
        return JobStatus("gone", gone)
    fields = ("--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode")
    try:
        answer = call_once("sacct", *fields)
    except NotAnswered:
        return JobStatus("gone", gone)
    state, _, code = answer.out.partition("\n")[0].strip().partition("|")
    if answer.code != 0 or not state:
        return JobStatus("gone", gone)
    if state in _ACTIVE or state in _WAITING:
        raise PlaceUnavailable(f"squeue does not list job {job}, and sacct reports it as {state}: its state is unknown")
    return JobStatus("gone", f"SLURM's accounting reports {state}, exit code {code.partition(':')[0]}")


def _done(answer: Answer) -> None:
    if answer.code != 0 and not _UNKNOWN_JOB.search(answer.err):
        raise PlaceUnavailable("scancel: the job was not cancelled", answer.text)


def _refusal(program: str, answer: Answer) -> PlaceError:
    message = re.sub(r"^(allocation failure|Batch job submission failed): ", "", answer.lines[-1])
    for pattern, key, allowed in _REFUSALS:
        if re.search(pattern, answer.err, re.IGNORECASE):
            return PlaceError([Problem("", key, f"{program} refuses it: {message}", allowed)])
    # A plugin of the site may explain it in other lines.
    found = f"{program} refuses it: {'; '.join([*answer.lines[:-1], message])}"
    return PlaceError([Problem("", "", found, "what `man sbatch` and the site's documentation describe")])

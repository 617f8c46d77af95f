"""The state of a run, one of eight, with the same meaning everywhere:

    pending    its job waits in a scheduler; `reason` says why
    starting   an attempt is being set up: processes, process group, data, checkpoint
    running    training or evaluating, or its processes end after that
    saving     a checkpoint is being written, and the workers wait for it
    stopped    it stopped on request, with a checkpoint: the same command continues it
    finished   all steps are done, or the target of `stop_at` is reached
    failed     it failed for good, or was killed; exit code and cause
    unknown    neither the run directory nor the scheduler shows it; an unreachable scheduler is not a failure

The run directory decides. A scheduler adds why a job waits, and distinguishes a run whose processes have ended from
one that cannot be reached.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.config import load as configs
from launcher.errors import ConfigError, UsageError
from launcher.exit_codes import ExitCode
from launcher.formatting import first_line
from launcher.run import lease, progress, submissions
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.holder import Holder
from launcher.run.lease import Unknown
from launcher.run.record_types import Attempt, Facts, Fatal
from launcher.run.submissions import JobStatus, Submission
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.metrics_file import metrics_record

State = Literal["pending", "starting", "running", "saving", "stopped", "finished", "failed", "unknown"]
Classified = tuple[State, str, int | None]  # state, reason or cause, exit code
LIVE: tuple[State, ...] = ("pending", "starting", "running", "saving")

NOT_BEGUN = "no attempt has begun, and no job was submitted"
STALE_LEASE_WAIT_S = 2 * lease.RENEW_EVERY_S  # for a renewal of a lease that looks stale: clocks may differ
_LINES = 200  # at the end of metrics.jsonl, searched for the newest train record
_MAX_SAMPLES = 10**12  # of a data set; what follows from a damaged record may be more
_TARGET = {True: "it has reached the target of stop_at", False: "all steps are done; it missed the target of stop_at"}
_STOPPED = (ExitCode.STOPPED, ExitCode.INTERRUPTED)
STOPPED_ON_REQUEST = "stopped on request"  # the cause of the end of an attempt that no other one follows


@dataclass(frozen=True)
class LeaseState:
    """Who holds the lease of a run. `silent_s` is the time since its last renewal, by this machine's clock."""

    holder: Holder | Unknown | None
    alive: bool
    silent_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run at one moment."""

    finished: Facts | None = None
    fatal: Fatal | None = None
    fatal_unreadable: bool = False  # the run failed for good, and FATAL cannot be read
    attempt: Attempt | None = None  # the newest
    beats: Sequence[Heartbeat] = ()
    lease: LeaseState = LeaseState(None, False)
    submission: Submission | None = None
    job: JobStatus | None = None  # of the submission; None if no scheduler was asked
    incident: Path | None = None  # summary of the newest attempt's failure
    has_started: bool = False  # the newest attempt has done its first step, by its records

    def job_is(self, state: str) -> bool:
        """Whether a scheduler reports this state of the job."""
        return self.job is not None and self.job.state == state


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of a run. Numbers that are unknown or not finite are None; `not_finite` names the latter."""

    run: str
    state: State
    reason: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    top1: float | None = None
    last_beat_s: float | None = None  # seconds since the newest heartbeat
    attempt: int | None = None
    workers: int | None = None
    exit_code: int | None = None
    job: str | None = None  # the newest submission: "slurm job 4711"
    not_finite: Sequence[str] = ()  # of loss, images_per_s and top1

    def text(self, name: str, form: str) -> str:
        """The number `name` for a person: formatted, "not finite", or empty if it is unknown."""
        value = getattr(self, name)
        return "not finite" if name in self.not_finite else "" if value is None else format(value, form)

    @property
    def ended_before_step_1(self) -> bool:
        """Whether it ended before it had done a step: it is of no interest but for its cause."""
        trained = self.step or self.loss is not None or "loss" in self.not_finite
        return (self.state == "failed" and not trained) or (self.state == "unknown" and self.reason == NOT_BEGUN)

    @property
    def short_reason(self) -> str:
        """The reason with paths inside of the run directory relative to it."""
        return self.reason.replace(f"{self.run}/", "")


def classify(evidence: Evidence) -> Classified:
    """The state, its reason or cause, and the exit code if there is one."""
    job, attempt, fatal = evidence.job, evidence.attempt, evidence.fatal
    if job is not None and job.state == "pending" and not evidence.lease.alive:
        return "pending", job.reason, None
    if evidence.finished is not None:
        reached = evidence.finished.get("target_reached")
        return "finished", "" if reached is None else _TARGET[reached], int(ExitCode.OK)
    if fatal is not None and not evidence.lease.alive:
        return "failed", _cause(fatal.message, evidence), fatal.exit_code
    if evidence.fatal_unreadable and not evidence.lease.alive:
        code = None if attempt is None else attempt.exit_code
        return "failed", _cause("the recorded reason cannot be read", evidence), code
    if attempt is None:
        return _without_attempt(evidence)
    if attempt.ended is not None:
        return _after_attempt(attempt, evidence)
    return _in_attempt(evidence) if evidence.lease.alive else _silent(attempt, evidence)


def _without_attempt(evidence: Evidence) -> Classified:
    job = evidence.job
    if evidence.lease.alive:
        return "starting", "the first attempt is being set up", None
    if job is None:
        return "unknown", NOT_BEGUN, None
    if job.state == "running":
        return "starting", f"{evidence.submission} has begun", None
    if job.state == "unreachable":
        return "unknown", job.reason, None
    if job.exit_code is not None:
        return _by_exit_code(job.exit_code, job.reason)
    return "failed", f"{evidence.submission} ended before its first attempt began: {job.reason}", None


def _after_attempt(attempt: Attempt, evidence: Evidence) -> Classified:
    code, cause = attempt.exit_code, first_line(attempt.cause)
    if not evidence.lease.alive:
        if code == ExitCode.OK:
            return "finished", "", code
        if code in _STOPPED:
            return "stopped", cause, code
        if not evidence.job_is("running"):
            return "failed", _cause(cause, evidence), code
    if code == ExitCode.OK or (code in _STOPPED and cause == STOPPED_ON_REQUEST):
        return "running", f"{'all steps are done' if code == ExitCode.OK else cause}: its processes are ending", None
    return "starting", f"after attempt {attempt.number}: {cause}", None  # its driver begins another one


def _in_attempt(evidence: Evidence) -> Classified:
    phases = [beat.phase for beat in evidence.beats if beat.ended is None]
    if all(phase == "start" for phase in phases):  # heartbeats are rewritten every few seconds, records at once
        return "running" if evidence.has_started else "starting", "", None
    if "save" in phases:
        return "saving", "", None
    return "running", "evaluating" if all(phase == "evaluate" for phase in phases) else "", None


def _silent(attempt: Attempt, evidence: Evidence) -> Classified:
    """An attempt without an end, whose process does not renew the lease."""
    holder, job = evidence.lease.holder, evidence.job
    silent = "no process holds the lease"
    if holder is not None:
        silent = f"lease not renewed for {evidence.lease.silent_s:,.0f} s by {holder}"
    if evidence.job_is("running"):
        return "unknown", f"{silent}; the scheduler reports {evidence.submission} as running", None
    gone = f"; {job.reason}" if job is not None and job.state == "gone" else ""
    looked_up = isinstance(holder, Holder) and holder.is_here()
    if gone or looked_up or holder is None:  # None: the lease was released
        return "failed", f"attempt {attempt.number} has no recorded end: killed, or its machine was lost{gone}", None
    return "unknown", f"{silent}; {job.reason}" if job is not None else silent, None


def classify_job(job: JobStatus) -> Classified:
    """The state by a scheduler's report only, for a run directory that cannot be read."""
    match job.state:
        case "gone" if job.exit_code is not None:
            return _by_exit_code(job.exit_code, job.reason)
        case "pending":
            return "pending", job.reason, None
        case "running":
            return "running", "its run directory is not on this machine", None
    return "unknown", job.reason, None


def _by_exit_code(code: int, reason: str) -> Classified:
    if code == ExitCode.OK:
        return "finished", "", code
    return ("stopped" if code in _STOPPED else "failed"), reason, code


def exists(run: RunDirectory) -> bool:
    """Whether there is a run: a job was submitted, or an attempt has begun. Raises StorageError."""
    with storage_errors(run.path):
        return any(path.exists() for path in (run.attempts_file, run.submissions, run.config, run.lease))


def lease_state(run: RunDirectory, stale_lease_wait_s: float = STALE_LEASE_WAIT_S) -> LeaseState:
    """Who holds the lease of a run, and whether that process is alive. Raises StorageError.

    A holder on another machine is alive if it renews the lease. A lease that looks stale is watched for
    `stale_lease_wait_s`.
    """
    with storage_errors(run.lease):
        holder = lease.holder(run.lease) if run.lease.is_dir() else None
        if holder is None:
            return LeaseState(None, False)
        renewed = _renewed(run)
        silent_s = max(time.time() - renewed, 0.0)
        if isinstance(holder, Holder) and holder.is_here():
            return LeaseState(holder, holder.is_alive(), silent_s)
        end = time.monotonic() + stale_lease_wait_s
        while silent_s > lease.EXPIRES_S and time.monotonic() < end:
            time.sleep(min(0.5, stale_lease_wait_s))
            if _renewed(run) != renewed:
                return LeaseState(holder, True)
        return LeaseState(holder, silent_s <= lease.EXPIRES_S, silent_s)


def read_status(run: RunDirectory, job: JobStatus | None, stale_lease_wait_s: float = STALE_LEASE_WAIT_S) -> RunStatus:
    """The status of the run in a directory; `job` is the scheduler's report. Raises StorageError, UsageError."""
    if not exists(run):
        raise UsageError(f"{run.path}: there is no run here. Allowed: a run directory, <storage>/<name>, or a config")
    with storage_errors(run.path):
        return _read_status(run, job, stale_lease_wait_s)


def _read_status(run: RunDirectory, job: JobStatus | None, stale_lease_wait_s: float) -> RunStatus:
    attempt = next(reversed(run.attempts()), None)
    submission = submissions.newest(run)
    beats = [] if attempt is None else progress.read_beats(run, attempt.number)
    incident = None if attempt is None else run.incident_summary(attempt.number)
    fatal = run.fatal()
    evidence = Evidence(
        finished=run.summary(),
        fatal=fatal,
        fatal_unreadable=fatal is None and run.has_failed(),
        attempt=attempt,
        beats=beats,
        lease=lease_state(run, stale_lease_wait_s),
        submission=submission,
        job=job,
        incident=incident if incident is not None and incident.parent.is_dir() else None,
        has_started=attempt is not None and progress.has_started(run, attempt, beats),
    )
    state, reason, code = classify(evidence)
    record = newest_record(run)
    summary = evidence.finished or {}
    sources = {"loss": record, "images_per_s": record, "top1": summary}
    return RunStatus(
        run=str(run.path),
        state=state,
        reason=reason,
        step=summary.get("step", _step(run, attempt, beats, record)),
        total_steps=summary["step"] if summary.get("target_reached") else total_steps(run, record),
        **{name: source.get(name) for name, source in sources.items()},
        not_finite=tuple(name for name, source in sources.items() if name in source and source[name] is None),
        last_beat_s=_last_beat_s(run, attempt),
        attempt=None if attempt is None else attempt.number,
        workers=None if attempt is None else attempt.facts.get("workers"),
        exit_code=code,
        job=None if submission is None else str(submission),
    )


def newest_record(run: RunDirectory) -> dict[str, Any]:
    """The newest train record of the newest attempt; empty without one."""
    for record in json_lines.read_tail(run.metrics, _LINES, metrics_record)[::-1]:
        if record.get("event") == "started":
            return {}
        if record.get("kind") == "train":
            return record
    return {}


def total_steps(run: RunDirectory, record: Mapping[str, Any]) -> int | None:
    """The number of steps of the whole run; None if the number of images is unknown, or the config cannot be read.

    The number of images is in the config, or follows from the step and epoch of a train record.
    """
    try:
        config = configs.load(run.config, recorded=True)
    except (ConfigError, UsageError):
        return None
    num_samples = config.data.num_trained()
    if num_samples is None and (epoch := record.get("epoch")):
        per_epoch = record["step"] * config.batch.size / epoch
        num_samples = round(per_epoch) if 0 < per_epoch < _MAX_SAMPLES else None
    if num_samples is None and config.duration.unit == "epochs":
        return None
    return config.duration.steps(batch_size=config.batch.size, num_samples=num_samples or 0)


def _step(
    run: RunDirectory, attempt: Attempt | None, beats: Sequence[Heartbeat], record: Mapping[str, Any]
) -> int | None:
    """Completed steps. Steps of an earlier attempt after its last checkpoint do not count: they are repeated."""
    if attempt is None:
        return None
    if attempt.last_step is not None:
        return attempt.last_step
    done = [progress.completed_steps(beat) for beat in beats if beat.phase != "start"]
    return max([int(record.get("step", 0)), progress.newest_step(run), *done])


def _last_beat_s(run: RunDirectory, attempt: Attempt | None) -> float | None:
    if attempt is None or attempt.ended is not None:
        return None
    try:
        times = [path.stat().st_mtime for path in run.logs(attempt.number).heartbeats.iterdir()]
    except OSError:
        return None
    return max(time.time() - max(times), 0.0) if times else None


def _renewed(run: RunDirectory) -> float:
    return max((path.stat().st_mtime for path in run.lease.glob("*.json")), default=0.0)


def _cause(cause: str, evidence: Evidence) -> str:
    return first_line(cause) + (f" ({evidence.incident})" if evidence.incident is not None else "")

"""How a run is doing, in one of eight words that are the same on every place.

    pending    a place has its job, and has not started it; `reason` says why
    starting   an attempt is being set up: processes, process group, data, checkpoint
    running    steps are made
    saving     a checkpoint is being written, and the workers wait for it
    stopped    it ended with a checkpoint on request; started again, it goes on
    finished   it reached its end
    failed     it ended for good, or was ended without a word; exit code and cause
    unknown    nobody who knows can be asked: unreachable is not failed

The truth is the run directory. What a place says adds the reason of a job that waits, and tells a run whose processes
are gone from one that is silent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.config import load as configs
from launcher.errors import ConfigError, UsageError
from launcher.exit_codes import ExitCode
from launcher.run import lease, progress, submissions
from launcher.run.directory import Attempt, Fatal, RunDirectory
from launcher.run.heartbeats import Beat
from launcher.run.holder import Holder
from launcher.run.submissions import JobStatus, Submission
from resnet_dist.errors import StorageError
from resnet_dist.telemetry import json_lines

State = Literal["pending", "starting", "running", "saving", "stopped", "finished", "failed", "unknown"]
LIVE: tuple[State, ...] = ("pending", "starting", "running", "saving")

PATIENCE_S = 2 * lease.RENEW_EVERY_S  # for a lease that looks stale to be renewed after all: clocks may differ
_LINES = 200  # of the end of metrics.jsonl, in which the newest train record is
_STOPPED = (ExitCode.STOPPED, ExitCode.INTERRUPTED)


@dataclass(frozen=True)
class Held:
    """The lease of a run. `silent_s` is for how long it has not been renewed, by this machine's clock."""

    holder: Holder | None
    alive: bool
    silent_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is to judge a run by, at one moment."""

    finished: Mapping[str, Any] | None = None
    fatal: Fatal | None = None
    attempt: Attempt | None = None  # the newest
    beats: Sequence[Beat] = ()
    held: Held = Held(None, False)
    submission: Submission | None = None
    word: JobStatus | None = None  # of the submission's place; None where nobody was asked
    incident: Path | None = None  # of the newest attempt


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run is doing, as `status` shows it. What is not known is None, and what is not finite."""

    run: str
    state: State
    reason: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    top1: float | None = None
    last_beat_s: float | None = None  # ago
    attempt: int | None = None
    workers: int | None = None
    exit_code: int | None = None
    job: str | None = None  # the newest submission: "slurm job 4711"
    not_finite: Sequence[str] = ()  # those of loss, images_per_s and top1 that are recorded as not finite

    def text(self, name: str, form: str) -> str:
        """The number called `name` for a person: "not finite" where it is recorded so, empty where it is not known."""
        value = getattr(self, name)
        return "not finite" if name in self.not_finite else "" if value is None else format(value, form)

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def judge(seen: Seen) -> tuple[State, str, int | None]:
    """The state, its reason or cause, and the exit code where there is one."""
    word, attempt = seen.word, seen.attempt
    if word is not None and word.state == "pending" and not seen.held.alive:
        return "pending", word.reason, None
    if seen.finished is not None:
        return "finished", "", int(ExitCode.OK)
    if seen.fatal is not None and not seen.held.alive:
        return "failed", _cause(seen.fatal.message, seen), seen.fatal.exit_code
    if attempt is None:
        return _not_begun(seen)
    if attempt.ended is not None:
        return _ended(attempt, seen)
    if seen.held.alive:
        return _at_work(seen)
    return _without_an_end(seen)


def _not_begun(seen: Seen) -> tuple[State, str, int | None]:
    word = seen.word
    if seen.held.alive:
        return "starting", "the first attempt is being set up", None
    if word is None:
        return "unknown", "nothing has begun here, and nothing was submitted", None
    if word.state == "running":
        return "starting", f"{seen.submission} has begun", None
    if word.state == "unreachable":
        return "unknown", word.reason, None
    if word.exit_code is not None:
        return _by_exit_code(word.exit_code, word.reason)
    return "failed", f"{seen.submission} ended before its first attempt began: {word.reason}", None


def _ended(attempt: Attempt, seen: Seen) -> tuple[State, str, int | None]:
    code = attempt.exit_code
    if seen.held.alive:  # its driver begins another one
        return "starting", f"after attempt {attempt.number}: {_first_line(attempt.cause)}", None
    if code == ExitCode.OK:
        return "finished", "", code
    if code in _STOPPED:
        return "stopped", _first_line(attempt.cause), code
    if seen.word is not None and seen.word.state == "running":
        return "starting", f"after attempt {attempt.number}: {_first_line(attempt.cause)}", None
    return "failed", _cause(attempt.cause or "", seen), code


def _at_work(seen: Seen) -> tuple[State, str, int | None]:
    phases = [beat.phase for beat in seen.beats if beat.ended is None]
    if not phases or all(phase == "start" for phase in phases):
        return "starting", "", None
    if "save" in phases:
        return "saving", "", None
    return "running", "evaluating" if all(phase == "evaluate" for phase in phases) else "", None


def _without_an_end(seen: Seen) -> tuple[State, str, int | None]:
    """An attempt that has begun, has no end, and whose process is not seen."""
    held, word = seen.held, seen.word
    dead = held.holder is None or held.holder.is_here()  # a lease given back without an end, or a process looked for
    silent = f"no sign of life for {held.silent_s:,.0f} s"
    if held.holder is not None:
        silent = f"{silent} from process {held.holder.pid} on {held.holder.host}"
    if word is not None and word.state == "running":
        return "unknown", f"{silent}; {seen.submission} is said to run", None
    if dead or (word is not None and word.state == "gone"):
        number = 0 if seen.attempt is None else seen.attempt.number
        gone = f"; {word.reason}" if word is not None and word.state == "gone" else ""
        return "failed", f"attempt {number} was ended without a word: killed, or its machine is gone{gone}", None
    why = f"; {word.reason}" if word is not None else ""
    return "unknown", f"{silent}{why}", None


def by_word(word: JobStatus) -> tuple[State, str, int | None]:
    """The state by what a place says alone, where the run directory cannot be read."""
    if word.state == "gone":
        return ("unknown", word.reason, None) if word.exit_code is None else _by_exit_code(word.exit_code, word.reason)
    states: dict[str, State] = {"pending": "pending", "running": "running", "unreachable": "unknown"}
    reason = word.reason if word.state != "running" else "its run directory is not on this machine"
    return states[word.state], reason, None


def _by_exit_code(code: int, reason: str) -> tuple[State, str, int | None]:
    if code == ExitCode.OK:
        return "finished", "", code
    return ("stopped" if code in _STOPPED else "failed"), reason, code


def exists(run: RunDirectory) -> bool:
    """Whether there is a run: something was submitted, or has begun. Raises StorageError."""
    try:
        return any(path.exists() for path in (run.attempts_file, run.submissions, run.config, run.lease))
    except OSError as error:
        raise StorageError(str(run.path), error.strerror or str(error)) from error


def lease_of(run: RunDirectory, patience_s: float = PATIENCE_S) -> Held:
    """Who is at work in a run, and whether that process lives. Raises StorageError.

    A holder on another machine lives if it renews its lease. One that looks stale is watched for `patience_s`.
    """
    if not run.lease.is_dir():
        return Held(None, False)
    holder = lease.holder(run.lease)
    if holder is None:
        return Held(None, False)
    renewed = _renewed(run)
    silent_s = max(time.time() - renewed, 0.0)
    if holder.is_here():
        return Held(holder, holder.is_alive(), silent_s)
    end = time.monotonic() + patience_s
    while silent_s > lease.EXPIRES_S and time.monotonic() < end:
        time.sleep(min(0.5, patience_s))
        if _renewed(run) != renewed:
            return Held(holder, True)
    return Held(holder, silent_s <= lease.EXPIRES_S, silent_s)


def look(run: RunDirectory, word: JobStatus | None, patience_s: float = PATIENCE_S) -> Status:
    """How the run in a directory is doing; `word` is what its place says. Raises StorageError, UsageError."""
    if not exists(run):
        raise UsageError(f"{run.path}: there is no run here. Allowed: a run directory, <storage>/<name>, or a config")
    found = run.attempts()
    attempt = found[-1] if found else None
    beats = progress.read_beats(run, attempt.number) if attempt is not None else []
    submission = submissions.newest(run)
    folder = None if attempt is None else run.incident(attempt.number)
    seen = Seen(
        finished=run.summary(),
        fatal=run.fatal(),
        attempt=attempt,
        beats=beats,
        held=lease_of(run, patience_s),
        submission=submission,
        word=word,
        incident=folder if folder is not None and folder.is_dir() else None,
    )
    state, reason, code = judge(seen)
    record = newest_record(run)
    summary = seen.finished or {}
    sources = {"loss": record, "images_per_s": record, "top1": summary}
    return Status(
        run=str(run.path),
        state=state,
        reason=reason,
        step=summary.get("step", _step(run, attempt, beats, record)),
        total_steps=total_steps(run, record),
        **{name: source.get(name) for name, source in sources.items()},
        not_finite=tuple(name for name, source in sources.items() if name in source and source[name] is None),
        last_beat_s=_last_beat_s(run, attempt),
        attempt=None if attempt is None else attempt.number,
        workers=None if attempt is None else attempt.facts.get("workers"),
        exit_code=code,
        job=None if submission is None else str(submission),
    )


def newest_record(run: RunDirectory) -> dict[str, Any]:
    """The newest train record of the newest attempt; empty where there is none."""
    for record in json_lines.read_tail(run.metrics, _LINES)[::-1]:
        if record.get("event") == "started":
            return {}
        if record.get("kind") == "train":
            return record
    return {}


def total_steps(run: RunDirectory, record: Mapping[str, Any]) -> int | None:
    """Steps of the whole run; None where nothing says how many images there are, or the config is another version's.

    A train record tells the number of images by its step and epoch.
    """
    try:
        config = configs.load(run.config)
    except (ConfigError, UsageError):
        return None
    num_samples = config.data.num_samples
    if num_samples is None and record.get("epoch"):
        num_samples = round(record["step"] * config.batch.size / record["epoch"])
    if num_samples is None and config.duration.unit == "epochs":
        return None
    return config.duration.steps(batch_size=config.batch.size, num_samples=num_samples or 0)


def _step(run: RunDirectory, attempt: Attempt | None, beats: Sequence[Beat], record: Mapping[str, Any]) -> int | None:
    """Completed steps. What an earlier attempt did beyond its last checkpoint does not count: it is done again."""
    if attempt is None:
        return None
    if attempt.last_step is not None:
        return attempt.last_step
    done = [beat.step - (beat.phase == "step") for beat in beats if beat.phase != "start"]
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


def _cause(cause: str, seen: Seen) -> str:
    where = f" ({seen.incident / 'summary.txt'})" if seen.incident is not None else ""
    return f"{_first_line(cause)}{where}"


def _first_line(text: str | None) -> str:
    return next(iter((text or "").splitlines()), "")

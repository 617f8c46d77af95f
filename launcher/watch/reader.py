"""Reads a run directory again and again, and only what has changed in it since: `Reader.read` makes a snapshot."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from launcher.errors import ConfigError, UsageError
from launcher.exit_codes import ExitCode
from launcher.formatting import count, first_line
from launcher.run import heartbeats, lease, progress, submissions
from launcher.run import status as run_state
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.record_types import Attempt
from launcher.run.status import Evidence, LeaseState, classify
from launcher.run.submissions import JobStatus
from launcher.watch.history import History
from launcher.watch.snapshot import Mark, Snapshot, Worker
from resnet_dist.errors import StorageError
from resnet_dist.input_files import printable, read_json, record_of
from resnet_dist.telemetry.json_lines import last_lines

T = TypeVar("T")

SILENT_S = 30.0  # since the heartbeat of a running worker: three times the longest interval between two
NUM_LOG_LINES = 200
_LOG_BYTES = 40_000
_STOPPED = (ExitCode.STOPPED, ExitCode.INTERRUPTED)
_BUDGET_S = 0.2  # of one reading of metrics.jsonl: a large file is read in parts, between which the view is drawn


@dataclass(frozen=True)
class Limits:
    """How much a snapshot has."""

    points: int = 300  # of a curve: half a terminal of 200 columns has 184 dots
    workers: int = 4_096
    log_lines: int = NUM_LOG_LINES


OVER_A_NETWORK = Limits(points=150, workers=256, log_lines=60)


class _Unless(Generic[T]):
    """A value that is made again only if a file or folder has changed."""

    def __init__(self, make: Callable[[], T], *paths: Path) -> None:
        self._make, self._paths = make, paths
        self._seen: list[tuple[int, int, int] | None] | None = None

    def value(self) -> T:
        seen = [_identity(path) for path in self._paths]
        if seen != self._seen:
            self._value, self._seen = self._make(), seen
        return self._value


class Reader:
    """A run directory on this machine. `ask_job` is the status of its job, from its scheduler; `name` its title."""

    def __init__(
        self,
        run: RunDirectory,
        ask_job: Callable[[], JobStatus | None] = lambda: None,
        limits: Limits = Limits(),
        name: str = "",
    ) -> None:
        self.run, self._ask_job, self._limits = run, ask_job, limits
        self._name = printable(name or run.name)
        self.history = History(run.metrics)
        self._attempts = _Unless(run.attempts, run.attempts_file)
        self._summary = _Unless(run.summary, run.finished_file)
        self._fatal = _Unless(run.fatal, run.fatal_file)
        self._submission = _Unless(lambda: submissions.newest(run), run.submissions)
        self._total_steps = _Unless(self._by_config, run.config)
        self._newest_saved = _Unless(lambda: progress.newest_step(run), run.checkpoints)
        self._beats = _Beats()
        self._lease = _Lease(run)
        self._log: tuple[object, list[str]] = (None, [])
        self.is_behind = True  # whether there is more to read now

    def read(self, rank: int = 0) -> Snapshot:
        """The run now, with the log of `rank`. A run directory that cannot be read is a reason, not an error."""
        try:
            return self._read(rank)
        except (StorageError, OSError) as error:
            self.is_behind = False
            return Snapshot(run=printable(str(self.run.path)), name=self._name, reason=printable(str(error)))

    def _read(self, rank: int) -> Snapshot:
        run, history = self.run, self.history
        self.is_behind = history.read(_BUDGET_S)
        attempts, summary = self._attempts.value(), self._summary.value()
        attempt = attempts[-1] if attempts else None
        logs = None if attempt is None else run.logs(attempt.number)
        beats = {} if logs is None else self._beats.read(logs)
        state, reason = self._state(attempt, beats)
        recent = history.recent()
        known = history.newest if state != "starting" else {}
        is_live = state in run_state.LIVE
        workers = [] if attempt is None else _workers(beats, attempt, history, is_live=is_live)
        ranks = [] if logs is None else logs.ranks()
        return Snapshot(
            run=printable(str(run.path)),
            name=self._name,
            state=state,
            reason=reason.replace(f"{run.path}/", ""),
            job=str(self._submission.value() or ""),
            step=(summary or {}).get("step", self._step(attempt, [beat for beat, _ in beats.values()])),
            total_steps=self._total(summary),
            epoch=known.get("epoch"),
            time_left_s=known.get("time_left_s") if is_live else None,
            loss=known.get("loss"),
            learning_rate=known.get("learning_rate"),
            images_per_s=known.get("images_per_s"),
            top1=history.top1,
            best_top1=history.best_top1,
            attempt=None if attempt is None else attempt.number,
            num_workers=None if attempt is None else attempt.facts.get("workers"),
            last_beat_s=min((age for _, age in beats.values()), default=None) if _is_open(attempt) else None,
            train=history.train(self._limits.points),
            evals=history.evals(self._limits.points),
            spent=history.spent,
            step_time_s=None if recent is None else recent[0],
            data_wait_s=None if recent is None else recent[1],
            bottleneck=history.bottleneck,
            marks=[*_marks(attempts), *history.marks],
            attempts=[_line(one, is_live=is_live) for one in attempts],
            events=self._events(),
            workers=sorted(workers, key=lambda one: not one.needs_attention)[: self._limits.workers],
            rank=rank,
            ranks=ranks,
            log=self._log_of(logs, rank),
            lacks_records=state == "finished" and history.is_empty,
        )

    def _state(self, attempt: Attempt | None, beats: dict[int, tuple[Heartbeat, float]]) -> tuple[str, str]:
        run = self.run
        fatal = self._fatal.value()
        incident = None if attempt is None else run.incident_summary(attempt.number)
        evidence = Evidence(
            finished=self._summary.value(),
            fatal=fatal,
            fatal_unreadable=fatal is None and run.has_failed(),
            attempt=attempt,
            beats=[beat for beat, _ in beats.values()],
            lease=self._lease.state(),
            submission=self._submission.value(),
            job=self._ask_job(),
            incident=incident if incident is not None and incident.parent.is_dir() else None,
            has_started=attempt is not None
            and progress.has_started(run, attempt, [beat for beat, _ in beats.values()]),
        )
        state, reason, _ = classify(evidence)
        if state == "starting" and not reason:
            reason = self.history.stage
        return state, printable(reason)

    def _total(self, summary: dict[str, Any] | None) -> int | None:
        if (summary or {}).get("target_reached"):
            return (summary or {}).get("step")
        return self.history.total_steps or self._total_steps.value()

    def _by_config(self) -> int | None:
        try:
            return run_state.total_steps(self.run, self.history.newest)
        except (ConfigError, UsageError, OSError):
            return None

    def _step(self, attempt: Attempt | None, beats: Sequence[Heartbeat]) -> int | None:
        """Completed steps, as `launcher.run.status` counts them."""
        if attempt is None or attempt.last_step is not None:
            return None if attempt is None else attempt.last_step
        done = [progress.completed_steps(beat) for beat in beats if beat.phase != "start"]
        return max([int(self.history.newest.get("step", 0)), self._newest_saved.value(), *done])

    def _events(self) -> list[str]:
        history = self.history
        notes = []
        if self.is_behind:
            notes.append(f"reading {self.run.metrics.name}: {history.fraction_read:.0%}")
        if history.num_unreadable:
            lines = count(history.num_unreadable, "line")
            notes.append(f"{self.run.metrics.name}: ignored {lines} that cannot be read")
        return [*notes, *history.events]

    def _log_of(self, logs: AttemptLogs | None, rank: int) -> list[str]:
        """The end of the log of a worker, or before the first attempt that of the newest SLURM job."""
        if logs is None:
            printed = sorted(self.run.all_logs.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
            path = printed[-1] if printed else self.run.output
        else:
            path = logs.log(rank)
        seen = (path, _identity(path))
        if seen != self._log[0]:
            lines = [printable(line) for line in last_lines(path, self._limits.log_lines, _LOG_BYTES)]
            self._log = (seen, lines)
        return self._log[1]


class _Beats:
    """The heartbeats of an attempt; a file is read again only after it was written."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._known: dict[str, tuple[int, Heartbeat]] = {}

    def read(self, logs: AttemptLogs) -> dict[int, tuple[Heartbeat, float]]:
        """{rank: (heartbeat, seconds since it was written)}, by rank."""
        if self._folder != logs.heartbeats:
            self._folder, self._known = logs.heartbeats, {}
        try:
            with os.scandir(logs.heartbeats) as entries:
                found = [(entry, entry.stat()) for entry in entries if heartbeats.NAME.fullmatch(entry.name)]
        except OSError:
            return {}
        now, beats = time.time(), {}
        for entry, status in found:
            written, beat = self._known.get(entry.name, (0, None))
            if written != status.st_mtime_ns:
                with contextlib.suppress(OSError, ValueError):  # it is being written
                    beat = record_of(Heartbeat, read_json(Path(entry.path))) or beat
                if beat is not None:
                    self._known[entry.name] = (status.st_mtime_ns, beat)
            if beat is not None:
                beats[beat.rank] = (beat, max(now - status.st_mtime, 0.0))
        return dict(sorted(beats.items()))


class _Lease:
    """Whether the process that runs a run is alive, without waiting for it."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._silent_since: tuple[float, float] | None = None  # of the holder's last renewal, and when we saw it first

    def state(self) -> LeaseState:
        """A lease that looks stale is alive if it was renewed since the last look: clocks may differ."""
        found = run_state.lease_state(self._run, stale_lease_wait_s=0.0)
        if found.alive or found.silent_s <= lease.EXPIRES_S:
            self._silent_since = None
            return found
        renewed, now = round(time.time() - found.silent_s), time.monotonic()
        if self._silent_since is not None and abs(renewed - self._silent_since[0]) > 1:
            self._silent_since = (renewed, now)
            return LeaseState(found.holder, True)
        self._silent_since = self._silent_since or (renewed, now - run_state.STALE_LEASE_WAIT_S)
        alive = now - self._silent_since[1] < run_state.STALE_LEASE_WAIT_S
        return LeaseState(found.holder, alive, found.silent_s)


def _workers(
    beats: dict[int, tuple[Heartbeat, float]], attempt: Attempt, history: History, *, is_live: bool
) -> list[Worker]:
    return [
        Worker(
            rank=beat.rank,
            host=beat.host,
            phase=beat.phase,
            step=beat.step,
            beat_s=age,
            progress_s=beat.age_s,
            note=_note(beat, age, attempt, history) if is_live and attempt.ended is None else _end(beat, attempt),
        )
        for beat, age in beats.values()
    ]


def _end(beat: Heartbeat, attempt: Attempt) -> str:
    """How a worker ended; one whose run was killed is gone."""
    if beat.ended in ("finished", "stopped"):
        return "ended"
    if beat.ended is not None:
        return f"ended: {beat.ended}"
    return "gone" if attempt.ended is None else "ended"


def _note(beat: Heartbeat, age: float, attempt: Attempt, history: History) -> str:
    """What is unusual of a worker whose attempt goes on."""
    if beat.ended is not None:
        return _end(beat, attempt)
    if beat.hung:
        return "hung"
    if age > SILENT_S:
        return f"silent for {age:.0f} s"
    slow = history.stragglers.get(beat.rank)
    if slow is not None:
        own, others = slow.get("local_step_time_s"), slow.get("others_s")
        known = isinstance(own, float) and isinstance(others, float)
        return f"straggler: {own:.3g} s a step, others {others:.3g} s" if known else "straggler"
    return "waits" if beat.waiting else ""


def _marks(attempts: Sequence[Attempt]) -> list[Mark]:
    """Where attempts after the first began, and where attempts failed."""
    marks = []
    for attempt in attempts:
        first = attempt.facts.get("from_step", 0)
        if attempt.number > 1:
            text = f"step {first:,}: attempt {attempt.number} began"
            marks.append(Mark(step=first, sign=str(attempt.number)[-1], text=text))
        if attempt.exit_code:
            sign = "|" if attempt.exit_code in _STOPPED else "x"
            step = attempt.last_step if attempt.last_step is not None else first
            cause = printable(first_line(attempt.cause)) or f"exit code {attempt.exit_code}"
            marks.append(Mark(step=step, sign=sign, text=f"step {step:,}: {cause}"))
    return marks


def _line(attempt: Attempt, *, is_live: bool) -> str:
    facts = attempt.facts
    begun = f"{attempt.number}  {attempt.started[:19].replace('T', ' ')} UTC  from step {facts.get('from_step', 0):,}"
    if (workers := facts.get("workers")) is not None:
        begun += f" on {count(workers, 'worker')}"
    if attempt.ended is None:
        return f"{begun}: {'it goes on' if is_live else 'no end recorded'}"
    return f"{begun}: {_cause(attempt)}"


def _cause(attempt: Attempt) -> str:
    cause = printable(first_line(attempt.cause)) or f"ended with exit code {attempt.exit_code}"
    last = "" if attempt.last_step is None else f" after step {attempt.last_step:,}"
    return f"{cause}{last}" if attempt.exit_code else f"finished{last}"


def _is_open(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.ended is None


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes with the content of a file, or the entries of a folder; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

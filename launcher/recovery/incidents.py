"""The incident folder of a failed attempt. The first line of its summary says what happened and what to do.

incidents/attempt-N/
    summary.txt                what happened, what to do, and the facts
    incident.json              the same for programs
    stacks/rank-K.txt          stack traces of all threads, after a hang
    flight/rank-K.json         the last collectives, after a hang
    metrics.jsonl              the last lines of the run's metrics.jsonl
    environment.json           differences from the previous attempt: versions, host, commit, variables
    logs/rank-K.log            the last lines of each worker's log
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config.dotted_keys import flatten
from launcher.formatting import count, first_line
from launcher.recovery.faults import rule_for
from launcher.recovery.history import heartbeat_of
from launcher.recovery.policy import Decision
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.progress import LostWork
from launcher.run.record_types import Facts, utc_now
from resnet_dist.input_files import read_json
from resnet_dist.telemetry.json_lines import last_lines

log = logging.getLogger(__name__)

NUM_METRICS, NUM_LOG_LINES = 50, 100
MAX_LOGS = 64  # the logs of the ranks that ended first


def write(
    run: RunDirectory,
    attempt: int,
    error: BaseException,
    lost: LostWork,
    beats: Sequence[Heartbeat],
    decision: Decision,
) -> None:
    """Write the incident folder. A failure to write it is logged, and does not fail the run."""
    folder = run.incident(attempt)
    facts = _facts(run, attempt, error, lost, beats, decision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "incident.json", json.dumps(facts, indent=2))
        _write(run.incident_summary(attempt), _summary(run, facts, decision))
        logs = run.logs(attempt)
        for source in (logs.stacks, logs.flight):
            _copy(source, folder / source.name)
        _write(folder / "metrics.jsonl", "\n".join(last_lines(run.metrics, NUM_METRICS)))
        difference = _difference(_environment(run.logs(attempt - 1)), _environment(logs))
        _write(folder / "environment.json", json.dumps(difference, indent=2))
        _copy_log_tails(logs, folder / "logs")
    except OSError as failed:
        log.warning("cannot write the incident folder of attempt %d: %s", attempt, failed)


def what_happened(error: BaseException, attempt: int, lost: LostWork) -> str:
    """What happened, in one line."""
    kind, message = type(error).__name__, first_line(str(error))
    return f"attempt {attempt} failed after step {lost.last_step}: {kind}: {message}"


def _facts(
    run: RunDirectory,
    attempt: int,
    error: BaseException,
    lost: LostWork,
    beats: Sequence[Heartbeat],
    decision: Decision,
) -> dict[str, Any]:
    rule, beat = rule_for(error), heartbeat_of(error, beats)
    return {
        "what_happened": what_happened(error, attempt, lost),
        "what_to_do": rule.advice,
        "attempt": attempt,
        "time": utc_now(),
        "class": type(error).__name__,
        "message": str(error),
        "exit_code": int(rule.exit_code),
        "rank": getattr(error, "rank", None),
        "host": getattr(error, "host", None) or (beat.host if beat else None),
        "node_id": getattr(error, "node_id", None) or (beat.node_id if beat else None),
        "phase": beat.phase if beat else None,
        "step": beat.step if beat else None,
        "heartbeat_age_s": _age_s(run.logs(attempt).heartbeat(beat.rank)) if beat else None,
        "last_step": lost.last_step,
        **lost.facts(beats),
        "resumed_step": lost.resumed_step,
        "tried_again": decision.again,
        "decision": decision.reason,
        "excluded": list(decision.history.excluded),
    }


def _age_s(file: Path) -> float | None:
    """Seconds since the last write of a file; None if it cannot be read."""
    try:
        return round(max(time.time() - file.stat().st_mtime, 0.0), 1)
    except OSError:
        return None


def _summary(run: RunDirectory, facts: Facts, decision: Decision) -> str:
    next_step = "the run was started again" if decision.again else "the run was not started again"
    age_s = facts["heartbeat_age_s"]
    age = "" if age_s is None else f" (heartbeat of {age_s:.0f} s ago)"
    lines = [
        f"{facts['what_happened']}. What to do: {facts['what_to_do']}",
        "",
        f"{next_step}: {decision.reason}",
        f"resumes at step {facts['resumed_step'] + 1}; lost: {count(facts['steps_redone'], 'step')}, "
        f"{facts['seconds_lost']:g} s",
        "",
        *(f"{name:<10} {facts[name]}" for name in ("class", "rank", "host", "node_id")),
        *(f"{name:<10} {facts[name]}{age}" for name in ("phase", "step")),
        f"{'nodes':<10} {facts['nodes']}",
        "",
        f"full logs: {run.logs(facts['attempt']).path}",
    ]
    return "\n".join([*lines, "", facts["message"]]) + "\n"


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder, except empty ones."""
    if not source.is_dir():
        return
    for path in source.iterdir():
        if path.stat().st_size:
            target.mkdir(exist_ok=True)
            shutil.copyfile(path, target / path.name)


def _write(file: Path, text: str) -> None:
    """Write lines of text, in UTF-8 whatever the locale is."""
    file.write_text(text.rstrip("\n") + "\n", encoding="utf-8", errors="backslashreplace")


def _copy_log_tails(logs: AttemptLogs, target: Path) -> None:
    target.mkdir(exist_ok=True)
    oldest_first = sorted(logs.logs(), key=lambda path: path.stat().st_mtime)
    for path in oldest_first[:MAX_LOGS]:
        _write(target / path.name, "\n".join(last_lines(path, NUM_LOG_LINES)))


def _environment(logs: AttemptLogs) -> Facts | None:
    try:
        content = read_json(logs.environment)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _difference(before: Facts | None, after: Facts | None) -> Facts:
    """{dotted key: [before, after]} of all differences except the time."""
    if before is None or after is None:
        return {"nothing to compare with": [before is not None, after is not None]}
    first, second = flatten(before), flatten(after)
    keys = sorted((first.keys() | second.keys()) - {"time"})
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}

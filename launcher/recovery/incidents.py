"""What is left of a failed attempt for whoever is paged: one folder, whose first line says what happened.

incidents/attempt-N/
    summary.txt                what happened, what to do; then the facts
    incident.json              the same for machines
    stacks/rank-K.txt          what every thread was doing, where a worker hung
    flight/rank-K.json         the last collectives, likewise
    metrics.jsonl              the last lines of the run's
    environment.json           what differs from the attempt before: versions, host, commit, variables
    logs/rank-K.log            the last lines of each worker's
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.recovery.faults import rule_for
from launcher.recovery.history import where
from launcher.recovery.policy import Decision
from launcher.run.directory import RunDirectory, utc_now
from launcher.run.heartbeats import Beat
from launcher.run.progress import Loss
from resnet_dist.telemetry.json_lines import last_lines

log = logging.getLogger(__name__)

NUM_METRICS, NUM_LOG_LINES = 50, 100
MAX_LOGS = 64  # ranks; of more, those that ended first are kept


def write(
    run: RunDirectory, attempt: int, error: BaseException, loss: Loss, beats: Sequence[Beat], decision: Decision
) -> Path | None:
    """Write the folder of a failure and return it; None where the disk refuses, which fails nobody."""
    folder = run.incident(attempt)
    facts = _facts(attempt, error, loss, beats, decision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "incident.json").write_text(json.dumps(facts, indent=2) + "\n")
        (folder / "summary.txt").write_text(_summary(run, facts, decision))
        logs = run.logs(attempt)
        for source in (logs.stacks, logs.flight):
            _copy(source, folder / source.name)
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in last_lines(run.metrics, NUM_METRICS)))
        difference = _difference(_environment(run, attempt - 1), _environment(run, attempt))
        (folder / "environment.json").write_text(json.dumps(difference, indent=2) + "\n")
        _tails(run, attempt, beats, folder / "logs")
    except OSError as failed:
        log.warning("the incident of attempt %d could not be written: %s", attempt, failed)
        return None
    return folder


def first_line(error: BaseException, attempt: int, loss: Loss) -> str:
    """What happened, in a line."""
    message = (str(error).splitlines() or [""])[0]
    return f"attempt {attempt} failed after step {loss.last_step}: {type(error).__name__}: {message}"


def _facts(attempt: int, error: BaseException, loss: Loss, beats: Sequence[Beat], decision: Decision) -> dict[str, Any]:
    rule, beat = rule_for(error), where(error, beats)
    return {
        "what_happened": first_line(error, attempt, loss),
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
        "last_step": loss.last_step,
        **loss.facts(beats),
        "tried_again": decision.again,
        "decision": decision.reason,
        "excluded": list(decision.history.excluded),
    }


def _summary(run: RunDirectory, facts: Mapping[str, Any], decision: Decision) -> str:
    again = "the run was tried again" if decision.again else "the run was given up"
    lines = [
        f"{facts['what_happened']}. What to do: {facts['what_to_do']}",
        "",
        f"{again}: {decision.reason}",
        f"goes on at step {facts['checkpoint_step'] + 1}; {facts['steps_redone']} steps are done again, "
        f"{facts['seconds_lost']:g} s are lost",
        "",
        *(f"{name:<10} {facts[name]}" for name in ("class", "rank", "host", "node_id", "phase", "step", "nodes")),
        "",
        f"all of the logs: {run.logs(facts['attempt']).path}",
    ]
    return "\n".join([*lines, "", facts["message"]]) + "\n"


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder that are not empty."""
    if not source.is_dir():
        return
    for path in source.iterdir():
        if path.stat().st_size:
            target.mkdir(exist_ok=True)
            shutil.copyfile(path, target / path.name)


def _tails(run: RunDirectory, attempt: int, beats: Sequence[Beat], target: Path) -> None:
    target.mkdir(exist_ok=True)
    logs = sorted(run.logs(attempt).logs(), key=lambda path: path.stat().st_mtime)
    for path in logs[:MAX_LOGS]:
        (target / path.name).write_text("".join(f"{line}\n" for line in last_lines(path, NUM_LOG_LINES)))


def _environment(run: RunDirectory, attempt: int) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(run.logs(attempt).environment.read_bytes())
    except (OSError, ValueError):
        return None
    return content


def _difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, Any]:
    """{dotted key: [before, after]} of what differs, but for the time."""
    if before is None or after is None:
        return {"nothing to compare with": [before is not None, after is not None]}
    first, second = dict(_flat(before)), dict(_flat(after))
    keys = sorted((first.keys() | second.keys()) - {"time"})
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in values.items():
        items += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return items

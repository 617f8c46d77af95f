"""`launcher status RUN|CONFIG`: how a run is doing; the words are those of `launcher.run.status`.

Exit code 0, or 69 for `unknown`: the run may be well, but nobody who knows could be asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from launcher.commands import target
from launcher.commands.target import Target
from launcher.errors import ClusterUnavailable
from launcher.exit_codes import ExitCode
from launcher.run import status as run_state
from launcher.run.status import Status
from launcher.run.submissions import JobStatus

_ENDED = ("finished", "failed", "stopped")


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--json]"""
    verb = verbs.add_parser("status", help="how a run is doing: pending, running, saving, finished, failed, ...")
    target.add_arguments(verb)
    verb.add_argument("--json", action="store_true", help="for machines")
    verb.add_argument(
        "--place-says",
        choices=("pending", "running", "gone"),
        help="what the run's place says of its job, where it cannot be asked from here: inside a pod",
    )
    verb.set_defaults(run=_status)


def status_of(found: Target, word: JobStatus | None) -> Status:
    """How a run is doing; `word` is what its place says. Raises StorageError and UsageError."""
    if found.is_here:
        return run_state.look(found.run, word)
    assert word is not None  # a run that is not here has a submission
    if found.profile is not None and word.state in ("running", "gone"):
        arguments = ["status", str(found.run.path), "--json", "--place-says", word.state]
        try:
            told = json.loads(found.read(arguments) or "")
            return Status(**{**told, "job": str(found.submission)})
        except ClusterUnavailable as error:
            return Status(run=str(found.run.path), state="unknown", reason=str(error), job=str(found.submission))
        except (ValueError, TypeError):  # no JSON: the reader printed an error; no run directory, perhaps
            pass
    state, reason, code = run_state.by_word(word)
    return Status(run=str(found.run.path), state=state, reason=reason, exit_code=code, job=str(found.submission))


def lines(status: Status) -> Iterator[str]:
    """For a person."""
    parts: list[str] = [status.state]
    if status.step is not None:
        total = status.total_steps
        of = f" of {total:,} ({status.step / total:.0%})" if total else ""
        parts.append(f"step {status.step:,}{of}")
    if loss := status.text("loss", ".4g"):
        parts.append(f"loss {loss}")
    if top1 := status.text("top1", ".2%"):
        parts.append(f"top-1 {top1}")
    if (speed := status.text("images_per_s", ",.0f")) and status.state not in _ENDED:
        parts.append(f"{speed} images/s")
    if status.last_beat_s is not None:
        parts.append(f"last beat {status.last_beat_s:.0f} s ago")
    yield f"{status.run}: {', '.join(parts)}"
    if status.exit_code:
        yield f"  exit code  {status.exit_code}"
    if status.reason:
        yield f"  {'cause' if status.state == 'failed' else 'because':<9}  {status.reason}"
    if status.attempt is not None:
        on = "" if status.workers is None else f" on {status.workers} worker{'s' * (status.workers != 1)}"
        yield f"  attempt    {status.attempt}{on}"
    if status.job is not None:
        yield f"  submitted  {status.job}"


def _status(given: argparse.Namespace) -> int:
    found = target.find(given)
    word = (
        found.word() if given.place_says is None else JobStatus(given.place_says, f"its place says {given.place_says}")
    )
    status = status_of(found, word)
    if given.json:
        print(json.dumps(status.described(), indent=2))
    else:
        for line in lines(status):
            print(line)
    return ExitCode.UNAVAILABLE if status.state == "unknown" else ExitCode.OK

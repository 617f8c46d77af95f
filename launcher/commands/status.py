"""`launcher status RUN|CONFIG`: the status of a run, as `launcher.run.status` defines it.

Exit code 0, or 69 for `unknown`, for example if the scheduler is unreachable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from launcher.commands import target
from launcher.commands.target import Target
from launcher.errors import ClusterUnavailable
from launcher.exit_codes import ExitCode
from launcher.formatting import count
from launcher.run import status as run_state
from launcher.run.status import RunStatus
from launcher.run.submissions import JobStatus
from resnet_dist.input_files import parse_json, printable, record_of

_ENDED = ("finished", "failed", "stopped")


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [key=value ...] [--json]"""
    verb = verbs.add_parser("status", help="the status of a run: pending, running, saving, finished, failed, ...")
    target.add_arguments(verb)
    verb.add_argument("--json", action="store_true", help="print JSON")
    target.add_place_says(verb)
    verb.set_defaults(run=_status)


def status_of(found: Target, job: JobStatus | None) -> RunStatus:
    """The status of a run; `job` is its scheduler's report. Raises StorageError and UsageError."""
    if found.is_here:
        return run_state.read_status(found.run, job)
    assert job is not None  # a run that is not here has a submission
    if found.profile is not None and job.state in ("running", "gone"):
        arguments = ["status", str(found.run.path), "--json", "--place-says", job.state]
        try:
            read = record_of(RunStatus, parse_json((found.read(arguments) or "").encode()))
            if read is not None:
                return dataclasses.replace(read, job=str(found.submission))
        except ClusterUnavailable as error:
            return RunStatus(run=str(found.run.path), state="unknown", reason=str(error), job=str(found.submission))
        except ValueError:  # not JSON but an error of the reader, for example: no run directory
            pass
    state, reason, code = run_state.classify_job(job)
    return RunStatus(run=str(found.run.path), state=state, reason=reason, exit_code=code, job=str(found.submission))


def lines(status: RunStatus) -> Iterator[str]:
    """The status as text."""
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
        parts.append(f"last heartbeat {status.last_beat_s:.0f} s ago")
    yield f"{printable(status.run)}: {', '.join(parts)}"
    if status.exit_code:
        yield f"  exit code  {status.exit_code}"
    if status.reason:
        yield f"  {'cause' if status.state == 'failed' else 'because':<9}  {status.short_reason}"
    if status.attempt is not None:
        on = "" if status.workers is None else f" on {count(status.workers, 'worker')}"
        yield f"  attempt    {status.attempt}{on}"
    if status.job is not None:
        yield f"  submitted  {status.job}"


def _status(given: argparse.Namespace) -> int:
    found = target.find(given)
    reported = given.place_says
    job = JobStatus(reported, f"its scheduler reports: {reported}") if reported else found.job_status()
    status = status_of(found, job)
    print(json.dumps(dataclasses.asdict(status), indent=2) if given.json else "\n".join(lines(status)))
    return ExitCode.UNAVAILABLE if status.state == "unknown" else ExitCode.OK

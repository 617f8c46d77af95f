"""`launcher list [STORAGE]`: the runs in a folder, one per line; by default in the usual folders."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.commands import schedulers
from launcher.errors import UsageError
from launcher.formatting import count, table
from launcher.run import status as run_state
from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.named import USUAL_STORAGES
from launcher.run.status import RunStatus
from launcher.run.submissions import JobStatus
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.errors import StorageError
from resnet_dist.input_files import printable

_MAX_REASON = 60  # characters
_USUAL = "this folder, " + ", ".join(map(str, USUAL_STORAGES))


def add_parser(verbs: Any) -> None:
    """[STORAGE] [--json]"""
    verb = verbs.add_parser("list", help="the runs in a folder, with their status")
    verb.add_argument(
        "storage",
        metavar="STORAGE",
        nargs="?",
        type=Path,
        help=f"a folder of runs, `storage` of a config (default: the first with runs of {_USUAL})",
    )
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_list)


def statuses(storage: Path) -> Iterator[RunStatus]:
    """The status of every run in a folder, by name. A scheduler is asked only about runs that may still be live."""
    with storage_errors(storage):
        folders = sorted(path for path in storage.iterdir() if path.is_dir())
    silent: dict[object, JobStatus] = {}  # clusters that did not answer are not asked again
    for folder in folders:
        run = RunDirectory(storage, folder.name)
        try:
            if not run_state.exists(run):
                continue
            submission = submissions.newest(run)
            job = None
            if submission is not None and not _is_over(run, submission):
                cluster = (submission.place, *sorted(submission.details.items()), submission.distrust)
                job = silent.get(cluster) or schedulers.ask(submission)
                if job.state == "unreachable":
                    silent[cluster] = job
            yield run_state.read_status(run, job, stale_lease_wait_s=0.0)
        except StorageError as error:  # this run cannot be read; the others can
            yield RunStatus(run=str(folder), state="unknown", reason=str(error))


def _is_over(run: RunDirectory, submission: submissions.Submission) -> bool:
    """Whether the run has finished or failed for good after its newest submission."""
    summary, fatal = run.summary(), run.fatal()
    ended = summary.get("time", "") if summary is not None else "" if fatal is None else fatal.time
    return bool(ended) and ended > submission.time  # both ISO 8601 in UTC


def lines(found: Sequence[RunStatus]) -> Iterator[str]:
    """The runs as a table, and below it those that ended before their first step, with the cause."""
    rows = [("RUN", "STATE", "STEP", "LOSS", "TOP-1", "JOB", "")]
    for status in found:
        if status.ended_before_step_1:
            continue
        step = "" if status.step is None else f"{status.step:,}"
        step += f" of {status.total_steps:,}" if step and status.total_steps else ""
        loss, top1 = status.text("loss", ".4g"), status.text("top1", ".2%")
        rows.append((_name(status), status.state, step, loss, top1, status.job or "", _short(status.short_reason)))
    if len(rows) > 1:
        yield from table(rows)
    if none := [status for status in found if status.ended_before_step_1]:
        yield f"{count(len(none), 'run')} ended before the first step:"
        yield from table([(_name(status), _short(status.short_reason)) for status in none], indent=2)


def _name(status: RunStatus) -> str:
    return printable(Path(status.run).name)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 3]}..."


def _list(given: argparse.Namespace) -> int:
    candidates = [Path(), *USUAL_STORAGES] if given.storage is None else [given.storage]
    folders = [folder.expanduser().absolute() for folder in candidates]
    if given.storage is not None and not folders[0].is_dir():
        raise UsageError(f"{folders[0]}: there is no such folder. Allowed: a folder with runs, `storage` of a config")
    found: list[RunStatus] = []
    storage = folders[0]
    for storage in (folder for folder in folders if folder.is_dir()):
        if found := list(statuses(storage)):
            break
    if given.json:
        print(json.dumps([asdict(status) for status in found], indent=2))
    elif not found:
        more = "" if given.storage else ". Give the `storage` of your config: launcher list STORAGE"
        print(f"no runs in {' and '.join(map(str, folders))}{more}")
    else:
        if given.storage is None:
            print(f"runs in {storage}")
        print("\n".join(lines(found)))
    return 0

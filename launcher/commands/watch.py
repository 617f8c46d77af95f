"""`launcher watch RUN|CONFIG [RUN|CONFIG]`: what a run does, full-screen, while it runs or afterwards.

Without a terminal it prints what it knows once. `--json` prints a snapshot as a line of JSON: `watch` on another
machine runs that where the run directory is, in the cluster, and shows it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.commands import target
from launcher.commands.status import status_of
from launcher.commands.target import Target
from launcher.errors import UsageError
from launcher.places.programs import Lines
from launcher.run.named import CONFIGS, distinct_names
from launcher.run.submissions import JobState, JobStatus
from launcher.watch.reader import OVER_A_NETWORK, Reader
from launcher.watch.screen import text
from launcher.watch.snapshot import Snapshot
from launcher.watch.sources import Elsewhere, Here, Source
from launcher.watch.view import View

ASK_EVERY_S = 30.0  # between two requests to a scheduler: squeue is expensive on a busy controller
STREAM_EVERY_S, STREAM_COUNT = 5.0, 60  # of snapshots from a cluster: a reader that nobody reads ends in minutes
_WIDEST = 100  # cells of what is printed
_ASCII = str.maketrans({"│": "|", "┤": "+", "└": "+", "─": "-", "┊": ":", "█": "#", "▓": "=", "▒": "-", "░": "."})


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [RUN|CONFIG] [key=value ...] [--once] [--json]"""
    verb = verbs.add_parser("watch", help="a full-screen view of one run, or of two: curves, time, workers, logs")
    verb.add_argument("targets", metavar="RUN|CONFIG", nargs="+", help="one or two")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="of the configs, as they were submitted")
    target.add_options(verb)
    verb.add_argument("--once", action="store_true", help="print what is known now, and end")
    verb.add_argument("--json", action="store_true", help="print a snapshot as one line of JSON per run, and end")
    verb.add_argument("--every", metavar="S", type=float, help="with --json: print again every S seconds")
    verb.add_argument("--count", metavar="N", type=int, help="with --every: end after so many times")
    verb.add_argument("--rank", metavar="K", type=int, default=0, help="whose log is shown first (%(default)s)")
    target.add_place_says(verb)
    verb.set_defaults(run=_watch)


def _watch(given: argparse.Namespace) -> int:
    found = _targets(given)
    if given.json:
        return _print_json(found, given)
    prints = given.once or not _is_terminal()
    names = distinct_names([one.run for one in found])
    sources = [_source(one, name, given, waits=prints) for one, name in zip(found, names, strict=True)]
    if prints:
        runs = [_first(source, given.rank) for source in sources]
        width = min(shutil.get_terminal_size((80, 24)).columns, _WIDEST)
        _print(text(runs, View(rank=given.rank), width))
        return 0
    return _show(sources, names, given.rank)


def _targets(given: argparse.Namespace) -> list[Target]:
    words = [*given.targets, *given.overrides]  # argparse cannot tell them apart
    overrides = [one for one in words if "=" in one and not Path(one).expanduser().exists()]
    names = [one for one in words if one not in overrides]
    if not 1 <= len(names) <= 2:
        raise UsageError(f"{len(names)} runs are given. Allowed: one, or two that are drawn over each other")
    if given.every is not None and not (given.json and given.every > 0):
        raise UsageError(f"--every {given.every:g}: allowed: a number of seconds above 0, with --json")
    if given.count is not None and not (given.every is not None and given.count > 0):
        raise UsageError(f"--count {given.count}: allowed: a whole number above 0, with --every")
    configs = [name for name in names if Path(name).suffix in CONFIGS] or names
    found = []
    for name in names:
        values = {"target": name, "overrides": overrides if name in configs else []}
        options = {"profile": given.profile, "context": given.context, "address": given.address}
        found.append(target.find(argparse.Namespace(**values, **options), may_begin_later=True))
    return found


def _is_terminal() -> bool:
    streams = (sys.stdin, sys.stdout, sys.stderr)  # textual draws on standard error
    return all(one.isatty() for one in streams) and os.environ.get("TERM", "") not in ("dumb", "unknown", "")


class _Job:
    """The state of a run's job: its scheduler is asked from time to time only, and without `waits` in a thread."""

    def __init__(self, found: Target, reported: JobState | None, *, waits: bool) -> None:
        self._found, self._waits = found, waits
        self._ask_at = float("-inf") if reported is None else float("inf")
        self._job: JobStatus | None = None
        if reported is not None:
            self._job = JobStatus(reported, f"its scheduler reports: {reported}")
        elif found.submission is not None:
            self._job = JobStatus("unreachable", "its scheduler was asked, and has not answered yet")

    def __call__(self) -> JobStatus | None:
        if time.monotonic() >= self._ask_at:
            self._ask_at = float("inf")
            if self._waits:
                self._ask()
            else:
                threading.Thread(target=self._ask, daemon=True).start()
        return self._job

    def _ask(self) -> None:
        self._job = self._found.job_status()
        self._ask_at = time.monotonic() + ASK_EVERY_S


def _source(found: Target, name: str, given: argparse.Namespace, *, waits: bool) -> Source:
    job = _Job(found, given.place_says, waits=waits or not found.is_here)
    if found.is_here:
        return Here(Reader(found.run, job, name=name))

    def state() -> tuple[Snapshot, bool]:
        now = job()
        status = status_of(dataclasses.replace(found, profile=None), now)
        known = Snapshot(run=status.run, name=name, state=status.state, reason=status.reason, job=status.job or "")
        return known, now is not None and now.state in ("running", "gone")

    def lines(rank: int) -> Lines:
        now = job()
        says = ["--place-says", now.state] if now is not None else []
        stream = ["--every", f"{STREAM_EVERY_S:g}", "--count", str(STREAM_COUNT), "--rank", str(rank)]
        return found.lines(["watch", str(found.run.path), "--json", *stream, *says])

    return Elsewhere(state, lines)


def _first(source: Source, rank: int) -> Snapshot:
    """The first whole snapshot."""
    newest = None
    for newest, wait_s in source.snapshots(lambda: rank):
        if wait_s > 0 or newest.train:
            break
    assert newest is not None
    return newest


def _print_json(found: Sequence[Target], given: argparse.Namespace) -> int:
    elsewhere = next((one for one in found if not one.is_here), None)
    if elsewhere is not None:
        raise UsageError(
            f"{elsewhere.run.path}: the run directory is not on this machine. Allowed with --json: one here"
        )
    readers = [Reader(one.run, _Job(one, given.place_says, waits=True), OVER_A_NETWORK) for one in found]
    number = 0
    while True:
        for reader in readers:
            snapshot = reader.read(given.rank)
            while reader.is_behind:
                snapshot = reader.read(given.rank)
            print(snapshot.to_json(), flush=True)
        number += 1
        if given.every is None or number == given.count:
            return 0
        time.sleep(given.every)


def _print(content: str) -> None:
    """Print, also where the encoding has no braille."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        content.encode(encoding)
    except UnicodeEncodeError:
        braille = dict.fromkeys(range(10241, 10496), "*")
        content = content.translate(_ASCII).translate(braille).encode(encoding, "replace").decode(encoding)
    print(content, end="")


def _show(sources: Sequence[Source], names: Sequence[str], rank: int) -> int:
    """The full-screen view, until a key ends it."""
    from launcher.watch.app import WatchApp

    logging.getLogger().addHandler(logging.NullHandler())  # a warning about a file would be written over the view
    app = WatchApp(sources, names, rank)
    try:
        app.run()
    finally:
        app.close()
    return 0

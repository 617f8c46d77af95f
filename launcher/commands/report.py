"""`launcher report RUN|CONFIG [RUN ...]`: what was trained and what came out, as text, JSON or a web page."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.commands import target
from launcher.commands.fitted import fitted_table, print_fitted
from launcher.errors import UsageError
from launcher.formatting import in_bytes
from launcher.report import ranking, summary
from launcher.report.facts import RunFacts, described, facts
from launcher.report.run_record import read_all
from launcher.run.named import find_here
from launcher.run.record_types import utc_now
from resnet_dist.checkpoint.disk import replace_whole, storage_errors
from resnet_dist.telemetry.json_lines import without_non_finite


def add_parser(verbs: Any) -> None:
    """RUN|CONFIG [RUN ...] [key=value ...] [--html FILE] [--json]"""
    verb = verbs.add_parser("report", help="what was trained, what came out, and where the time went")
    target.add_arguments(verb, several=True)
    verb.add_argument("--html", metavar="FILE", type=Path, help="write a web page that needs no other file")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    others = [word for word in given.overrides if "=" not in word or Path(word).expanduser().exists()]
    given.overrides = [word for word in given.overrides if word not in others]
    found = target.find(given)
    if not found.is_here:
        _read_there(found, given, others)
        return 0
    runs = dict.fromkeys([found.run, *map(find_here, others)])  # one that is named twice counts once
    reported = [facts(run) for run in read_all(list(runs))]
    if given.json:
        print(json.dumps(without_non_finite(_described(reported)), indent=2, default=str, allow_nan=False))
    elif given.html is None:
        print_fitted(report_lines(reported))
    if given.html is not None:
        written = _write_page(reported, given.html)
        print(written, file=sys.stderr if given.json else sys.stdout)  # the JSON stays alone on standard output
    return 0


def _read_there(found: target.Target, given: argparse.Namespace, others: Sequence[str]) -> None:
    """Print the report of a run whose directory is on a volume elsewhere. Raises UsageError if nothing can read it."""
    if others or given.html is not None:
        raise UsageError(
            f"{found.run.path}: the run directory is not on this machine. Allowed: several runs and --html where the "
            "directories are, for example in a pod with the volume"
        )
    if found.read(["report", str(found.run.path), *(["--json"] if given.json else [])], live=True) is None:
        raise UsageError(
            f"{found.run.path}: the run directory is not on this machine. Allowed: this command on a machine that "
            "has it, or a config with --profile (Kubernetes)"
        )


def report_lines(reported: Sequence[RunFacts]) -> Iterator[str]:
    """The report as text; of several runs, with their ranking first."""
    if len(reported) > 1:
        yield from ranking.lines(ranking.ranked([one.run for one in reported]), tabulate=fitted_table)
    for one in reported:
        if len(reported) > 1:
            yield ""
        yield from summary.lines(one)


def _described(reported: Sequence[RunFacts]) -> dict[str, Any]:
    rows = ranking.ranked([one.run for one in reported])
    return {
        "runs": [described(one) for one in reported],
        "ranking": [ranking.described(row) for row in rows],
        "warnings": ranking.warnings(rows),
    }


def _write_page(reported: Sequence[RunFacts], file: Path) -> str:
    """Write the page of `--html`; returns its path and size for a person."""
    from launcher.report.page import page

    file = file.expanduser().absolute()
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"--html {file}: Allowed: a file to write, in a folder that exists")
    command = shlex.join(
        ["launcher", "report", *(str(one.run.directory.path) for one in reported), "--html", str(file)]
    )
    rows = ranking.ranked([one.run for one in reported]) if len(reported) > 1 else []
    content = page(reported, rows, command, utc_now()).encode()
    with storage_errors(file):
        replace_whole(file, content)
    return f"{file} ({in_bytes(len(content))})"

"""`launcher doctor [CONFIG]`: check the machines before a run uses them.

Exit code 0 if no check fails, 69 if one does, 78 if the config is wrong. Checks this host; with RAY_ADDRESS every node
of that cluster, and under torchrun every host of the group.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.checks.finding import STATUSES, Finding, failed, passed, worst
from launcher.checks.host_requirements import requirements_of
from launcher.checks.variables import of_profile
from launcher.config import load as configs
from launcher.config.profiles import load_profile
from launcher.config.schema import RunConfig, leads, under_torchrun
from launcher.errors import ConfigError, UsageError
from launcher.exit_codes import ExitCode

SECONDS, QUICK_SECONDS = 300.0, 60.0
_WIDTH = 110


def add_parser(verbs: Any) -> None:
    """[CONFIG [key=value ...]] [--json] [--quick] [--profile P]"""
    verb = verbs.add_parser("doctor", help="check the machines: versions, GPUs, network, storage, data, limits")
    verb.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file: also check what this run requires")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. workers=4")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.add_argument("--quick", action="store_true", help="leave out slow checks: arithmetic, all-reduce")
    verb.add_argument("--profile", metavar="P", help="of the site: compare its variables with yours")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Check the machines and print the findings; returns the exit code."""
    from launcher.checks.suite import preflight  # its checks are imported for this verb only

    started = time.monotonic()
    seconds = QUICK_SECONDS if given.quick else SECONDS
    code = ExitCode.OK
    config: RunConfig | None = None
    profile = profile_variables(given.profile) if given.profile else {}
    findings: list[Finding] = []
    if given.config is not None:
        try:
            config = configs.load(given.config, given.overrides)
            findings.append(passed("config", f"{given.config}: no problem"))
        except ConfigError as error:
            code = ExitCode.CONFIG
            advice = "correct it; launcher plan checks it again"
            findings += [failed("config", str(problem), advice) for problem in error.problems]
    if under_torchrun():
        from launcher.checks.store_hosts import group_findings

        findings += group_findings(config, seconds, quick=given.quick, profile=profile)
    elif os.environ.get("RAY_ADDRESS") and (config is None or requirements_of(config).ray):
        from launcher.ray_backend.doctor import ray_findings

        findings += preflight(config, seconds, quick=given.quick, profile=profile)
        findings += ray_findings(config, seconds, quick=given.quick, profile=profile)
    else:
        findings += preflight(config, seconds, quick=given.quick, profile=profile)
    if worst(findings) == "fail" and code is ExitCode.OK:
        code = ExitCode.UNAVAILABLE
    if not leads():
        return code
    if given.json:
        print(json.dumps(described(findings, time.monotonic() - started, code), indent=2))
    else:
        print("\n".join(lines(findings)))
    return code


def profile_variables(name: str) -> dict[str, str]:
    """The variables of the profile with this name or path, of either kind; UsageError if it is neither."""
    try:
        return of_profile(load_profile(name, "slurm"))
    except ConfigError as no_slurm:
        try:
            return of_profile(load_profile(name, "kubernetes"))
        except ConfigError as no_kubernetes:
            raise UsageError(f"--profile {name}: for SLURM: {no_slurm}\nfor Kubernetes: {no_kubernetes}") from None


def described(findings: Sequence[Finding], time_s: float, code: int) -> dict[str, Any]:
    """The findings as JSON."""
    return {
        "status": worst(findings),
        "exit_code": int(code),
        "time_s": round(time_s, 3),
        "findings": [finding.described() for finding in findings],
    }


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as a table, with the advice of warnings and failures, and their counts."""
    names = [f"{finding.host}: {finding.name}" if finding.host else finding.name for finding in findings]
    width = max(map(len, names), default=0)
    indent = " " * (width + 11)
    for name, finding in zip(names, findings, strict=True):
        head = f"{finding.status:<7}  {name:<{width}}  "
        yield from _wrapped(finding.found, head, indent)
        if finding.status in ("warn", "fail") and finding.advice:
            yield from _wrapped(finding.advice, f"{indent}-> ", f"{indent}   ")
    counts = Counter(finding.status for finding in findings)
    yield ""
    yield ", ".join(f"{counts[status]} {status}" for status in STATUSES)


def _wrapped(text: str, head: str, indent: str) -> Iterator[str]:
    wrapped = textwrap.wrap(
        text, max(40, _WIDTH - len(indent)), break_long_words=False, break_on_hyphens=False, replace_whitespace=True
    )
    for number, part in enumerate(wrapped or [""]):
        yield f"{head if number == 0 else indent}{part}".rstrip()

"""Facts of one host, and what differs between the hosts of a run."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from launcher.checks.accelerator import driver_cuda
from launcher.checks.finding import Finding, failed, passed, warned
from launcher.run.environment import environment

Report = Mapping[str, Any]

_NVIDIA_SMI_S = 15
_NAMED = 5  # hosts that a finding names
# Assumptions: above a second the logs of several hosts cannot be read side by side; above half a minute certificates
# and tickets begin to be refused (Kerberos bears five minutes).
SKEW_WARNED_S, SKEW_FAILED_S = 1.0, 30.0

# Other versions compute other numbers, or cannot read what the others send.
_MUST_AGREE = ("python", "cuda", "code")
# Slower, or a sign that a host was set up in another way.
_SHOULD_AGREE = ("driver", "gpus", "num_cpus_allowed")


def node_report() -> dict[str, Any]:
    """Facts of this host as JSON; runs anywhere, uses neither Ray nor a process group, and knows no secret."""
    driver = driver_cuda()
    return {
        **environment(),
        "host": socket.gethostname(),
        "time_s": time.time(),
        "cuda": torch.version.cuda,
        "driver": None if driver is None else ".".join(map(str, driver)),
        "gpus": _gpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "code": code_fingerprint(),
    }


def code_fingerprint() -> str:
    """sha256 of this project's own source files, installed or not: the first 16 digits."""
    digest = hashlib.sha256()
    for package in ("cluster", "launcher", "resnet_dist"):
        folder = Path(__file__).parents[2] / package
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder.parent)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _gpus() -> list[str]:
    """Names of the GPUs that the driver has, without touching them; none where there is no nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def compare_reports(reports: Mapping[str, Report]) -> list[Finding]:
    """What differs between hosts: versions, code, drivers, GPUs, variables, clocks. Every deviating host is named.

    `reports` are those of `node_report` by host. Clocks are compared where a report has "ahead_s": (least, most), by
    how many seconds that host's clock is ahead of the caller's.
    """
    if len(reports) < 2:
        return []
    findings = [*_versions(reports), *_variables(reports)]
    for key in _SHOULD_AGREE:
        findings += _unequal(key, {host: report.get(key) for host, report in reports.items()}, must=False)
    if not findings:
        said = f"{len(reports)} hosts have the same Python, packages, code, drivers and variables"
        findings = [passed("versions", said)]
    return [*findings, *_clocks(reports)]


def _versions(reports: Mapping[str, Report]) -> Iterator[Finding]:
    for key in _MUST_AGREE:
        yield from _unequal(key, {host: report.get(key) for host, report in reports.items()}, must=True)
    for package in sorted({name for report in reports.values() for name in report.get("packages", {})}):
        values = {host: report.get("packages", {}).get(package) for host, report in reports.items()}
        yield from _unequal(package, values, must=True)


def _variables(reports: Mapping[str, Report]) -> Iterator[Finding]:
    for name in sorted({name for report in reports.values() for name in report.get("variables", {})}):
        values = {host: report.get("variables", {}).get(name) for host, report in reports.items()}
        yield from _unequal(name, values, must=False)


def _unequal(what: str, values: Mapping[str, Any], must: bool) -> Iterator[Finding]:
    """A finding that says who has what, where not all have the same."""
    having: defaultdict[str, list[str]] = defaultdict(list)
    for host, value in values.items():
        having[json.dumps(value)].append(host)
    if len(having) == 1:
        return
    most, *rest = sorted(having.items(), key=lambda item: -len(item[1]))
    odd = "; ".join(f"{_said(value)} on {named(hosts)}" for value, hosts in rest)
    said = f"{what}: {_said(most[0])} on {named(most[1])}; {odd}"
    if must:
        yield failed("versions", said, "install the same everywhere: one image, or one environment on shared storage")
    else:
        yield warned("versions", said, "set these hosts up alike, or leave the odd ones out")


def _said(value: str) -> str:
    return "none" if value in ("null", "[]") else value.strip('"')


def named(hosts: Sequence[str]) -> str:
    """Hosts in words: their names, of many the first five and a count."""
    shown = ", ".join(hosts[:_NAMED])
    return shown if len(hosts) <= _NAMED else f"{shown} and {len(hosts) - _NAMED} more"


def _clocks(reports: Mapping[str, Report]) -> Iterator[Finding]:
    """A finding on how far the clocks are apart at least; what the network's delay may explain is not counted."""
    ahead = {host: report["ahead_s"] for host, report in reports.items() if "ahead_s" in report}
    if len(ahead) < 2:
        return
    middle = sorted(sum(bounds) / 2 for bounds in ahead.values())[len(ahead) // 2]
    apart = max(0.0, max(least for least, _ in ahead.values()) - min(most for _, most in ahead.values()))
    odd = max(ahead, key=lambda host: abs(sum(ahead[host]) / 2 - middle))
    said = f"{apart:.3g} s apart, {odd} the most"
    advice = f"synchronise them (chrony, systemd-timesyncd), {odd} first: logs, tickets and times of files are compared"
    if apart > SKEW_FAILED_S:
        yield failed("clocks", said, advice)
    elif apart > SKEW_WARNED_S:
        yield warned("clocks", said, advice)
    else:
        yield passed("clocks", f"within {max(apart, 0.001):.1g} s of each other, as far as can be told")

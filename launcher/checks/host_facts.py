"""Facts of one host, and how the hosts of a run differ in them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from launcher.checks.accelerator import driver_cuda
from launcher.checks.children import Answer
from launcher.checks.finding import Finding, graded, passed
from launcher.formatting import listed
from launcher.run.environment import environment

_NVIDIA_SMI_S = 15
# Assumptions: above a second the logs of several hosts cannot be read side by side; above half a minute certificates
# and tickets begin to be refused (Kerberos allows five minutes).
SKEW_WARNED_S, SKEW_FAILED_S = 1.0, 30.0

# Other versions compute other numbers, or cannot exchange data.
_MUST_AGREE = ("python", "cuda", "code")
# Other values cost speed, or show that a host was set up differently.
_SHOULD_AGREE = ("driver", "gpus", "num_cpus_allowed")


def host_facts() -> Answer:
    """Facts of this host as JSON, without secrets. Uses neither Ray nor a process group."""
    driver = driver_cuda()
    return {
        **environment(),
        "cuda": torch.version.cuda,
        "driver": None if driver is None else ".".join(map(str, driver)),
        "gpus": _gpus(),
        "code": code_fingerprint(),
    }


def code_fingerprint() -> str:
    """The first 16 hex digits of the sha256 of this project's source files."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("cluster", "launcher", "resnet_dist"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _gpus() -> list[str]:
    """Name and driver of each GPU, without using them; empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def compare_hosts(facts: Mapping[str, Answer]) -> list[Finding]:
    """Differences in versions, code, drivers, GPUs, variables and clocks, with the names of the deviating hosts.

    `facts` are those of `host_facts` by host. Clocks are compared where they contain "ahead_s": (least, most), the
    number of seconds by which that host's clock is ahead of the caller's.
    """
    if len(facts) < 2:
        return []
    findings: list[Finding] = []
    for key in _MUST_AGREE:
        findings += _differing(key, {host: one.get(key) for host, one in facts.items()}, must=True)
    for group, must in (("packages", True), ("variables", False)):
        tables = {host: one.get(group, {}) for host, one in facts.items()}
        for name in sorted({name for table in tables.values() for name in table}):
            findings += _differing(name, {host: table.get(name) for host, table in tables.items()}, must=must)
    for key in _SHOULD_AGREE:
        findings += _differing(key, {host: one.get(key) for host, one in facts.items()}, must=False)
    if not findings:
        found = f"{len(facts)} hosts have the same Python, packages, code, drivers and variables"
        findings = [passed("versions", found)]
    return [*findings, *_clocks(facts)]


def _differing(what: str, values: Mapping[str, object], must: bool) -> Iterator[Finding]:
    """A finding that names the hosts with each value, unless all have the same."""
    hosts_by_value: defaultdict[str, list[str]] = defaultdict(list)
    for host, value in values.items():
        hosts_by_value[json.dumps(value)].append(host)
    if len(hosts_by_value) == 1:
        return
    groups = sorted(hosts_by_value.items(), key=lambda item: -len(item[1]))
    found = "; ".join(f"{_shown(value)} on {listed(hosts)}" for value, hosts in groups)
    advice = "configure these hosts in the same way, or exclude those that differ"
    if must:
        advice = "install the same versions everywhere: one image, or one environment on shared storage"
    yield graded("versions", f"{what}: {found}", advice, fail=must, warn=True)


def _shown(value: str) -> str:
    return "none" if value in ("null", "[]") else value.strip('"')


def _clocks(facts: Mapping[str, Answer]) -> Iterator[Finding]:
    """How far apart the clocks are at least; differences that the network's delay may explain do not count."""
    ahead = {host: one["ahead_s"] for host, one in facts.items() if "ahead_s" in one}
    if len(ahead) < 2:
        return
    middle = sorted(sum(bounds) / 2 for bounds in ahead.values())[len(ahead) // 2]
    apart = max(0.0, max(least for least, _ in ahead.values()) - min(most for _, most in ahead.values()))
    odd = max(ahead, key=lambda host: abs(sum(ahead[host]) / 2 - middle))
    found = f"{apart:.3g} s apart, {odd} the most"
    if apart <= SKEW_WARNED_S:
        found = f"within {max(apart, 0.001):.1g} s of each other, as far as can be measured"
    advice = f"synchronise them (chrony, systemd-timesyncd), {odd} first: logs, tickets and file times are compared"
    yield graded("clocks", found, advice, fail=apart > SKEW_FAILED_S, warn=apart > SKEW_WARNED_S)

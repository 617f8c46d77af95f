"""The checks of several hosts: each host, how they differ, and what they do together."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from launcher.checks import bisection
from launcher.checks.bisection import PairTests
from launcher.checks.finding import Finding, failed, graded, passed, skipped
from launcher.checks.host_facts import compare_hosts
from launcher.checks.hosts import Call, Hosts, split_answers
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.formatting import count, in_bytes, listed

_FACTS_S = 60  # a first Ray task on a host starts a process and imports torch there
_SHORT_S = 20
_SEE_S = 10  # assumption: NFS clients may cache a listing for some seconds
_SLOW_S = 1.0  # a longer wait for another host's file is a warning
_REDUCE_S, _PAIR_S = 40, 20  # for the collective itself
_START_S = 40  # for its processes to start, and for the answer to arrive
_CLOCK_TRIES = 3
_REDUCE_BYTES = {"gloo": 2**24, "nccl": 2**29}  # below 512 MB NVLink is not saturated (nccl-tests issue 212)
_PAIR_BYTES = 2**22
_MAX_PROBLEMS = 3  # of an all-reduce, in a finding

Limit = Callable[[float], float]  # from the seconds that a step may take to those that it can have


def cluster_findings(
    hosts: Hosts,
    config: RunConfig | None,
    seconds: float,
    *,
    quick: bool = False,
    profile: Mapping[str, str] | None = None,
) -> list[Finding]:
    """All findings on a run's hosts, within `seconds`."""
    deadline = time.monotonic() + seconds

    def left(most: float) -> float:
        return max(0.1, min(most, deadline - time.monotonic()))

    facts, silent = split_answers(hosts.run({host: ("facts", {}) for host in hosts.hosts}, left(_FACTS_S)))
    advice = "check that it is up and can run Python with this project"
    findings = [failed("reached", why, advice).on(host) for host, why in silent.items()]
    alive = [host for host in hosts.hosts if host in facts]
    if not alive:
        return findings
    if not silent:
        findings.append(passed("reached", count(len(alive), "host")))
    if config is not None:
        findings.append(_enough(hosts, alive, config))
    for host, bounds in _clock_offsets(hosts, alive, left(_SHORT_S)).items():
        facts[host] = {**facts[host], "ahead_s": bounds}
    findings += compare_hosts(facts)
    if config is not None and len(alive) > 1:
        findings += _shared_storage(hosts, alive, config.storage, left(_SEE_S + _SHORT_S))
    # Time for the all-reduce and one round of pairs is reserved.
    reserved = 0 if quick or len(alive) < 2 else 2 * (_PAIR_S + _START_S)
    findings += _each_host(hosts, alive, config, max(left(seconds) - reserved, left(_SHORT_S)), quick, profile or {})
    if len(alive) > 1:
        gpus = config is not None and config.resources.gpus_per_worker > 0
        findings += [skipped("all-reduce", "left out by --quick")] if quick else _all_reduce(hosts, alive, gpus, left)
    return findings


def _enough(hosts: Hosts, alive: Sequence[str], config: RunConfig) -> Finding:
    """Whether the hosts together have the GPUs and CPUs that the run requires."""
    least, resources = config.workers.least, config.resources
    offered = {
        "GPUs": (sum(hosts.hosts[host].gpus for host in alive), least * resources.gpus_per_worker),
        "CPUs": (sum(hosts.hosts[host].cpus for host in alive), least * resources.cpus_per_worker),
    }
    missing = {name: (have, required) for name, (have, required) in offered.items() if have < required}
    shown = (f"{have} {name} ({required} required)" for name, (have, required) in (missing or offered).items())
    advice = "add hosts, or lower workers: the loss curve stays the same"
    return graded("resources", f"the hosts offer {', '.join(shown)}", advice, fail=bool(missing))


def _clock_offsets(hosts: Hosts, alive: Sequence[str], seconds: float) -> dict[str, tuple[float, float]]:
    """By how many seconds each host's clock is ahead of this one's: (least, most), the narrowest of a few tries."""
    bounds: dict[str, tuple[float, float]] = {}

    def ask(host: str) -> None:
        for _ in range(_CLOCK_TRIES):
            before = time.time()
            answer = hosts.run({host: ("clock", {})}, seconds / _CLOCK_TRIES)[host]
            after = time.time()
            if isinstance(answer, str):
                return
            found = (answer["time_s"] - after, answer["time_s"] - before)
            if host not in bounds or found[1] - found[0] < bounds[host][1] - bounds[host][0]:
                bounds[host] = found

    with ThreadPoolExecutor(min(32, len(alive)), thread_name_prefix="clock") as pool:
        list(pool.map(ask, alive))
    return bounds


def _shared_storage(hosts: Hosts, alive: Sequence[str], storage: str, seconds: float) -> list[Finding]:
    """Each host writes and renames a file in the storage, and must see the files of all other hosts."""
    name, advice = "shared storage", "mount the same storage at the same path on every host"
    parent = hosts.run({alive[0]: ("existing", {"path": storage})}, seconds / 4)[alive[0]]
    if isinstance(parent, str):
        return [failed(name, parent, "mount the storage").on(alive[0])]
    if parent["path"] == "/":  # probably a missing mount
        return [failed(name, f"{storage} does not exist", "mount it, or choose another storage").on(alive[0])]
    folder = f"{parent['path']}/.doctor-{secrets.token_hex(8)}"
    files = {host: str(number) for number, host in enumerate(alive)}
    contents = {file: secrets.token_hex(8) for file in files.values()}
    writes: dict[str, Call] = {
        host: ("write", {"folder": folder, "name": file, "content": contents[file]}) for host, file in files.items()
    }
    try:
        _, refused = split_answers(hosts.run(writes, seconds / 2))
        if refused:
            return [failed(name, why, advice).on(host) for host, why in refused.items()]
        call: Call = ("see", {"folder": folder, "contents": contents, "seconds": min(_SEE_S, seconds / 3)})
        seen, silent = split_answers(hosts.run(dict.fromkeys(alive, call), seconds / 2))
    finally:  # each host removes its own file: if the storage is not shared, no other host can
        hosts.run({host: ("remove", {"folder": folder, "names": [file]}) for host, file in files.items()}, _SHORT_S)
    findings = [failed(name, why, advice).on(host) for host, why in silent.items()]
    for host, answer in seen.items():
        if answer["missing"]:
            owners = listed([owner for owner, file in files.items() if file in answer["missing"]])
            findings.append(failed(name, f"does not see the files of {owners} in {folder}", advice).on(host))
    if findings:
        return findings
    slowest = max(answer["waited_s"] for answer in seen.values())
    found = f"{count(len(alive), 'host')} see each other's files"
    found += f", after up to {slowest:.1f} s" if slowest > _SLOW_S else ", written and renamed"
    advice = "reduce the time that NFS clients cache attributes (actimeo)"
    return [graded(name, found, advice, warn=slowest > _SLOW_S)]


def _each_host(
    hosts: Hosts,
    alive: Sequence[str],
    config: RunConfig | None,
    seconds: float,
    quick: bool,
    profile: Mapping[str, str],
) -> list[Finding]:
    """The checks of every host; findings that all hosts share are merged."""
    without_gpus = config is not None and not config.resources.gpus_per_worker
    common = {"config": configs.to_yaml(config) if config else "", "quick": quick, "profile": dict(profile)}
    common["seconds"] = max(1.0, seconds - 2)
    calls: dict[str, Call] = {}
    for name in alive:
        host = hosts.hosts[name]
        here = {"workers": host.workers, "gpus": 0 if without_gpus else host.gpus, "cpus": host.cpus}
        calls[name] = ("findings", {**common, **here})
    answered, silent = split_answers(hosts.run(calls, seconds))
    findings = [failed("checks", why, "run `launcher doctor` on this host").on(host) for host, why in silent.items()]
    by_host = {host: [Finding(**one) for one in answer["findings"]] for host, answer in answered.items()}
    return findings + merged(by_host)


def merged(by_host: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Findings of many hosts: passes once for all hosts, warnings and failures once for each host."""
    groups: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for host, findings in by_host.items():
        for finding in findings:
            groups[finding.name, finding.status].append(finding.on(host))
    result: list[Finding] = []
    for (name, status), same in groups.items():
        if status in ("warn", "fail"):
            result += same
            continue
        num_hosts, num_texts = len({finding.host for finding in same}), len({finding.found for finding in same})
        where = f"{count(num_hosts, 'host')}{', the first' * (num_texts > 1)}: " if len(by_host) > 1 else ""
        result.append(Finding(name, same[0].status, f"{where}{same[0].found}"))
    return result


def _all_reduce(hosts: Hosts, alive: Sequence[str], gpus: bool, left: Limit) -> list[Finding]:
    """An all-reduce over all hosts; if it fails, over pairs of them, which finds the bad host."""
    backend = "nccl" if gpus else "gloo"
    members = [host for host in alive if hosts.hosts[host].gpus > 0] if gpus else list(alive)
    if len(members) < 2:
        return [skipped("all-reduce", f"{count(len(members), 'host')} with a GPU; two are needed")]
    if left(_REDUCE_S) < 1:
        return [skipped("all-reduce", "no time left")]
    problems, speed = reduce_over(hosts, members, gpus, _REDUCE_BYTES[backend], left(_REDUCE_S + _START_S))
    where = f"{backend} over {count(len(members), 'host')}"
    if not problems:
        return [passed("all-reduce", f"{where}: right, {in_bytes(speed)}/s per link")]
    advice = "see the pair tests below; firewalls must allow all ports between the hosts"
    found = failed("all-reduce", f"{where}: {'; '.join(problems[:_MAX_PROBLEMS])}", advice)
    tests = pair_tests(hosts, members, gpus, lambda: left(_PAIR_S + _START_S))
    return [found, *bisection.findings(tests)]


def pair_tests(hosts: Hosts, members: Sequence[str], gpus: bool, seconds: Callable[[], float]) -> PairTests:
    """Find the bad host among `members` by all-reduces of pairs; `seconds` returns the time that a round may take."""
    return bisection.find_bad_hosts(
        members, lambda a, b: not reduce_over(hosts, [a, b], gpus, _PAIR_BYTES, seconds())[0]
    )


def reduce_over(
    hosts: Hosts, members: Sequence[str], gpus: bool, num_bytes: int, seconds: float
) -> tuple[list[str], float]:
    """An all-reduce between `members`: its problems, one line per host, and the bytes per second and link."""
    head = members[0]
    port = hosts.run({head: ("port", {})}, min(_SHORT_S, seconds))[head]
    if isinstance(port, str):
        return [f"{head}: {port}"], 0.0
    processes = {host: hosts.hosts[host].gpus if gpus else 1 for host in members}
    common = {
        "world_size": sum(processes.values()), "address": hosts.hosts[head].address, "port": port["port"],
        "gpus": gpus, "num_bytes": num_bytes, "seconds": max(1.0, seconds - _START_S),
    }  # fmt: skip
    calls: dict[str, Call] = {}
    first_rank = 0
    for host in members:
        calls[host] = ("reduce", {**common, "first_rank": first_rank, "processes": processes[host]})
        first_rank += processes[host]
    answered, silent = split_answers(hosts.run(calls, seconds))
    problems = [f"{host}: {why}" for host, why in silent.items()]
    for host, answer in answered.items():
        problems += [f"{host}: {problem}" for problem in answer["problems"][:1]]
        if answer["wrong"]:
            problems.append(f"{host}: {count(answer['wrong'], 'element')} of the sum wrong")
    return problems, min((answer["bus_bytes_per_s"] for answer in answered.values()), default=0.0)

"""The checks of several hosts together. How a host is reached, through Ray or torchrun's store, is a `Hosts`."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from launcher.checks.bisection import Pair, PairOk, Verdict, find_bad_hosts
from launcher.checks.finding import Finding, failed, in_bytes, number, passed, skipped, warned
from launcher.checks.report import compare_reports, named
from launcher.config import load as configs
from launcher.config.schema import RunConfig

Call = tuple[str, Mapping[str, Any]]  # a task of `launcher.checks.tasks`, and its arguments

_REPORT_S = 60  # a first Ray task on a host starts a process and imports torch there
_SHORT_S = 20
_SEE_S = 10  # assumption: NFS clients may keep a listing for some seconds
_SLOW_S = 1.0  # to see another host's file: worth a word
_REDUCE_S, _PAIR_S = 40, 20  # for the collective itself
_START_S = 40  # for its processes to start, and for the answer to come back
_CLOCK_TRIES = 3
_REDUCE_BYTES = {"gloo": 2**24, "nccl": 2**29}  # below 512 MB NVLink is not filled (nccl-tests issue 212)
_PAIR_BYTES = 2**22


class Hosts(Protocol):
    """Hosts that can be asked to do a task. Names are unique; the run's driver need not be among them."""

    names: Sequence[str]
    addresses: Mapping[str, str]  # where the other hosts reach it
    workers: Mapping[str, int]  # that the run may place there at most
    gpus: Mapping[str, int]
    cpus: Mapping[str, int]

    def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, dict[str, Any] | str]:
        """Ask all named hosts at once; of each its answer, or in words why there is none. Bounded by `seconds`.

        May be called from several threads at once, with different hosts.
        """
        ...


def cluster_findings(
    hosts: Hosts,
    config: RunConfig | None,
    seconds: float,
    *,
    quick: bool = False,
    profile: Mapping[str, str] | None = None,
) -> list[Finding]:
    """All findings on a run's hosts, within `seconds`: each by itself, their differences, and what they do together."""
    deadline = time.monotonic() + seconds

    def left(most: float) -> float:
        return max(0.1, min(most, deadline - time.monotonic()))

    reports, silent = _answers(hosts.run({host: ("report", {}) for host in hosts.names}, left(_REPORT_S)))
    advice = "is it up, and can it run Python with this project?"
    findings = [failed("reached", why, advice).on(host) for host, why in silent]
    alive = [host for host in hosts.names if host in reports]
    if not alive:
        return findings
    if not silent:
        findings.append(passed("reached", number(len(alive), "host")))
    findings += _enough(hosts, alive, config)
    ahead = _clock_offsets(hosts, alive, left(_SHORT_S))
    compared = {host: {**reports[host], **({"ahead_s": ahead[host]} if host in ahead else {})} for host in alive}
    findings += compare_reports(compared)
    if config is not None and len(alive) > 1:
        findings += _shared_storage(hosts, alive, config, left(_SEE_S + _SHORT_S))
    # What must come after keeps its time.
    kept = 0 if quick or len(alive) < 2 else 2 * (_PAIR_S + _START_S)
    findings += _each_host(hosts, alive, config, max(left(seconds) - kept, left(_SHORT_S)), quick, profile or {})
    if len(alive) > 1:
        findings += [skipped("all-reduce", "left out by --quick")] if quick else _reduced(hosts, alive, config, left)
    return findings


def _answers(
    answers: Mapping[str, dict[str, Any] | str],
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """What was answered, and who did not with the reason."""
    good = {host: answer for host, answer in answers.items() if not isinstance(answer, str)}
    return good, [(host, answer) for host, answer in answers.items() if isinstance(answer, str)]


def _enough(hosts: Hosts, alive: Sequence[str], config: RunConfig | None) -> list[Finding]:
    """Whether the hosts together have what the run asks for."""
    if config is None:
        return []
    least = config.workers.least
    wanted = {"GPUs": least * config.resources.gpus_per_worker, "CPUs": least * config.resources.cpus_per_worker}
    have = {"GPUs": sum(hosts.gpus[host] for host in alive), "CPUs": sum(hosts.cpus[host] for host in alive)}
    missing = [name for name in wanted if have[name] < wanted[name]]
    said = ", ".join(f"{have[name]} {name} ({wanted[name]} asked)" for name in missing or wanted)
    if missing:
        advice = "add hosts, or lower workers: the curve stays the same"
        return [failed("resources", f"the hosts offer {said}", advice)]
    return [passed("resources", f"the hosts offer {said}")]


def _clock_offsets(hosts: Hosts, alive: Sequence[str], seconds: float) -> dict[str, tuple[float, float]]:
    """By how much each host's clock is ahead of this one's: (least, most), the narrowest of a few tries."""
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


def _shared_storage(hosts: Hosts, alive: Sequence[str], config: RunConfig, seconds: float) -> list[Finding]:
    """Each host writes and renames a file in the storage, and must see those of all others."""
    nearest = hosts.run({alive[0]: ("nearest", {"path": config.storage})}, seconds / 4)[alive[0]]
    if isinstance(nearest, str):
        return [failed("shared storage", nearest, "mount the storage").on(alive[0])]
    if nearest["path"] == "/":  # written into by nobody; a mount that is missing, most likely
        said = f"{config.storage} is not there"
        return [failed("shared storage", said, "mount it, or choose another storage").on(alive[0])]
    folder = f"{nearest['path']}/.doctor-{secrets.token_hex(8)}"
    contents = {f"{number_}": secrets.token_hex(8) for number_ in range(len(alive))}
    files = dict(zip(alive, contents, strict=True))
    wrote = hosts.run(
        {host: ("write", {"folder": folder, "name": files[host], "content": contents[files[host]]}) for host in alive},
        seconds / 2,
    )
    _, refused = _answers(wrote)
    advice = "mount the same storage at the same path on every host"
    findings = [failed("shared storage", why, advice).on(host) for host, why in refused]
    try:
        if refused:
            return findings
        call: Call = ("see", {"folder": folder, "contents": contents, "seconds": min(_SEE_S, seconds / 3)})
        seen, silent = _answers(hosts.run(dict.fromkeys(alive, call), seconds / 2))
        findings += [failed("shared storage", why, advice).on(host) for host, why in silent]
        owners = {name: host for host, name in files.items()}
        for host, answer in seen.items():
            if answer["missing"]:
                said = f"does not see what {named([owners[name] for name in answer['missing']])} wrote to {folder}"
                findings.append(failed("shared storage", said, advice).on(host))
        slowest = max((answer["waited_s"] for answer in seen.values()), default=0.0)
        if not findings and slowest > _SLOW_S:
            said = f"files of other hosts are seen after {slowest:.1f} s"
            findings.append(warned("shared storage", said, "let NFS clients cache attributes for less (actimeo)"))
        elif not findings:
            findings.append(passed("shared storage", f"{len(alive)} hosts see each other's files, written and renamed"))
    finally:
        # Every host takes away its own: where the storage is not shared, nobody else could.
        hosts.run({host: ("remove", {"folder": folder, "names": [files[host]]}) for host in alive}, _SHORT_S)
    return findings


def _each_host(
    hosts: Hosts,
    alive: Sequence[str],
    config: RunConfig | None,
    seconds: float,
    quick: bool,
    profile: Mapping[str, str],
) -> list[Finding]:
    """Every host's own checks; what all say alike is said once."""
    common = {"config": configs.to_yaml(config) if config else "", "quick": quick, "profile": dict(profile)}
    calls: dict[str, Call] = {}
    for host in alive:
        here = {"workers": hosts.workers[host], "gpus": hosts.gpus[host], "cpus": hosts.cpus[host]}
        if config is not None and not config.resources.gpus_per_worker:
            here["gpus"] = 0
        calls[host] = ("findings", {**common, **here, "seconds": max(1.0, seconds - 2)})
    answered, silent = _answers(hosts.run(calls, seconds))
    findings = [failed("checks", why, "run `launcher doctor` on it by hand").on(host) for host, why in silent]
    by_host = {host: [Finding(**one) for one in answer["findings"]] for host, answer in answered.items()}
    return findings + folded(by_host)


def folded(by_host: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Findings of many hosts: good ones once for all, the others once for each host that has them."""
    alike: defaultdict[tuple[str, str], list[tuple[str, Finding]]] = defaultdict(list)
    for host, findings in by_host.items():
        for finding in findings:
            alike[finding.name, finding.status].append((host, finding))
    folded_: list[Finding] = []
    for (name, status), those in alike.items():
        if status in ("pass", "skipped"):
            texts = list(dict.fromkeys(finding.found for _, finding in those))
            hosts = list(dict.fromkeys(host for host, _ in those))
            where = f"{number(len(hosts), 'host')}{', the first' * (len(texts) > 1)}: " if len(by_host) > 1 else ""
            folded_.append(Finding(name, those[0][1].status, f"{where}{texts[0]}"))
        else:
            folded_ += [finding.on(host) for host, finding in those]
    return folded_


def _reduced(hosts: Hosts, alive: Sequence[str], config: RunConfig | None, left: Any) -> list[Finding]:
    """An all-reduce over all hosts and, where it fails, over pairs of them, to name the bad one."""
    gpus = config is not None and config.resources.gpus_per_worker > 0
    backend = "nccl" if gpus else "gloo"
    taking_part = [host for host in alive if hosts.gpus[host] > 0] if gpus else list(alive)
    if len(taking_part) < 2:
        return [skipped("all-reduce", f"{number(len(taking_part), 'host')} with a GPU: nobody to exchange with")]
    if left(_REDUCE_S) < 1:
        return [skipped("all-reduce", "no time was left for it")]
    problems, speed = reduce_over(hosts, taking_part, gpus, _REDUCE_BYTES[backend], left(_REDUCE_S + _START_S))
    if not problems:
        said = f"{backend} over {number(len(taking_part), 'host')}: right, {in_bytes(speed)}/s a link"
        return [passed("all-reduce", said)]
    said = f"{backend} over {number(len(taking_part), 'host')}: {'; '.join(problems[:3])}"
    findings = [failed("all-reduce", said, "see the pairs below; firewalls must let all ports through between hosts")]
    return findings + verdict_findings(blamed(hosts, taking_part, gpus, lambda: left(_PAIR_S + _START_S)))


def blamed(hosts: Hosts, members: Sequence[str], gpus: bool, seconds: Callable[[], float]) -> Verdict:
    """Which of `members` is the bad one, by an all-reduce of pairs; `seconds` says how long a round may still take."""

    def pair_ok(a: str, b: str) -> bool:
        return not reduce_over(hosts, [a, b], gpus, _PAIR_BYTES, seconds())[0]

    def at_once(test: PairOk, pairs: Sequence[Pair]) -> list[bool]:
        with ThreadPoolExecutor(max(1, len(pairs)), thread_name_prefix="pair") as pool:
            return list(pool.map(lambda pair: test(*pair), pairs))

    return find_bad_hosts(members, pair_ok, at_once)


def reduce_over(
    hosts: Hosts, members: Sequence[str], gpus: bool, num_bytes: int, seconds: float
) -> tuple[list[str], float]:
    """An all-reduce between `members`: what went wrong, a line a host, and bytes a second a link."""
    head = members[0]
    port = hosts.run({head: ("port", {})}, min(_SHORT_S, seconds))[head]
    if isinstance(port, str):
        return [f"{head}: {port}"], 0.0
    processes = {host: hosts.gpus[host] if gpus else 1 for host in members}
    common = {
        "world_size": sum(processes.values()), "address": hosts.addresses[head], "port": port["port"], "gpus": gpus,
        "num_bytes": num_bytes, "seconds": max(1.0, seconds - _START_S),
    }  # fmt: skip
    calls: dict[str, Call] = {}
    first_rank = 0
    for host in members:
        calls[host] = ("reduce", {**common, "first_rank": first_rank, "processes": processes[host]})
        first_rank += processes[host]
    answered, silent = _answers(hosts.run(calls, seconds))
    problems = [f"{host}: {why}" for host, why in silent]
    for host, answer in answered.items():
        problems += [f"{host}: {problem}" for problem in answer["problems"][:1]]
        if answer["wrong"]:
            problems.append(f"{host}: {number(answer['wrong'], 'element')} of the sum wrong")
    return problems, min((answer["bus_bytes_per_s"] for answer in answered.values()), default=0.0)


def verdict_findings(verdict: Verdict) -> list[Finding]:
    """Who is to blame, in words."""
    rounds = f"{number(verdict.rounds, 'round')} of pairs"
    advice = "take it out of the job (sbatch --exclude, kubectl cordon), and have its network and GPUs looked at"
    findings = [
        failed("bad host", f"exchanges with no host that works with others ({rounds})", advice).on(host)
        for host in verdict.bad
    ]
    for a, b in verdict.links:
        said = f"{a} and {b} work with others, and not with each other"
        findings.append(failed("bad link", said, "have the switches and cables between them looked at"))
    if verdict.unknown:
        said = f"{named(verdict.unknown)}: no pair works, so none of them can be cleared ({rounds})"
        findings.append(failed("bad host", said, "suspect what all share: firewall, network interface, driver"))
    if not findings:
        said = f"every pair works ({rounds}): only all together they fail"
        findings.append(warned("bad host", said, "suspect the fabric's load, or limits on connections and open files"))
    return findings

"""Find the bad host by tests of two hosts at a time, in few rounds.

The pairs of a round have no host in common, so they are tested at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launcher.checks.finding import Finding, failed, warned
from launcher.formatting import count, listed

Pair = tuple[str, str]
PairWorks = Callable[[str, str], bool]

_MAX_ROUNDS = 8  # three rounds find one bad host; more are needed where most hosts are bad


@dataclass(frozen=True)
class PairTests:
    """The result of the tests. A host is bad if it fails with every known good host that it was tested with."""

    bad: tuple[str, ...]
    links: tuple[Pair, ...]  # pairs that fail although both hosts work with others
    unknown: tuple[str, ...]  # never tested with a known good host: of two hosts, either may be the bad one
    rounds: int


def find_bad_hosts(hosts: Sequence[str], pair_works: PairWorks, max_rounds: int = _MAX_ROUNDS) -> PairTests:
    """Find the bad hosts among `hosts`; `pair_works(a, b)` tests two of them, and is called from several threads.

    First each host is tested with another one: where a pair works, both are good. Then each host that failed is tested
    with good ones, with two different ones if there are as many: a broken link between good hosts marks neither as bad.
    """
    search = _Search(pair_works)
    order = list(hosts)
    all_pairings = len(order) - 1 + len(order) % 2
    while search.rounds < min(max_rounds, all_pairings) and not search.good:
        search.test(_pairing(order, search.rounds))
    suspects = [host for host in order if host not in search.good]
    wanted = min(2, len(search.good))
    bad: list[str] = []
    while search.good:
        bad += [host for host in suspects if len(search.failed_with_good(host)) >= wanted]
        suspects = [host for host in suspects if host not in search.good and host not in bad]
        if not suspects or search.rounds >= max_rounds:
            break
        search.test(_with_good(suspects, [host for host in order if host in search.good], search.failed))
    links = tuple(pair for pair in search.failed if set(pair) <= search.good)
    return PairTests(tuple(host for host in order if host in bad), links, tuple(suspects), search.rounds)


def findings(tests: PairTests) -> list[Finding]:
    """The bad hosts and links as findings; a warning if every pair works."""
    rounds = f"{count(tests.rounds, 'round')} of pair tests"
    advice = "exclude it from the job (sbatch --exclude, kubectl cordon), and have its network and GPUs checked"
    found = [
        failed("bad host", f"fails with hosts that work with each other ({rounds})", advice).on(host)
        for host in tests.bad
    ]
    for a, b in tests.links:
        text = f"{a} and {b} work with other hosts, but not with each other ({rounds})"
        found.append(failed("bad link", text, "have the switches and cables between them checked"))
    if tests.unknown:
        text = f"{listed(tests.unknown)}: no pair works, so the bad host is unknown ({rounds})"
        found.append(failed("bad host", text, "check what they share: firewall, network interface, driver"))
    if not found:
        text = f"every pair of hosts works ({rounds}); only the exchange between all hosts fails"
        found.append(warned("bad host", text, "check the network's load, and limits on connections and open files"))
    return found


class _Search:
    """The results of the rounds so far."""

    def __init__(self, pair_works: PairWorks) -> None:
        self._pair_works = pair_works
        self.good: set[str] = set()
        self.failed: list[Pair] = []
        self.rounds = 0

    def test(self, pairs: Sequence[Pair]) -> None:
        self.rounds += 1
        with ThreadPoolExecutor(max(1, len(pairs)), thread_name_prefix="pair") as pool:
            results = list(pool.map(lambda pair: self._pair_works(*pair), pairs))
        for pair, works in zip(pairs, results, strict=True):
            if works:
                self.good.update(pair)
            else:
                self.failed.append(pair)

    def failed_with_good(self, host: str) -> set[str]:
        return {other for pair in self.failed if host in pair for other in pair if other != host} & self.good


def _pairing(hosts: Sequence[str], number: int) -> list[Pair]:
    """Round `number` of a round robin (circle method): each host once, no pair twice; an odd host is left out."""
    seats: list[str | None] = list(hosts) if len(hosts) % 2 == 0 else [*hosts, None]
    turn = number % max(1, len(seats) - 1)
    ring = [seats[0], *seats[len(seats) - turn :], *seats[1 : len(seats) - turn]]
    half = len(ring) // 2
    facing = zip(ring[:half], reversed(ring[half:]), strict=True)
    return [(a, b) for a, b in facing if a is not None and b is not None]


def _with_good(suspects: Sequence[str], good: Sequence[str], failed: Sequence[Pair]) -> list[Pair]:
    """Each suspect with a good host that it was not tested with, as long as good hosts are free in this round."""
    tested = {frozenset(pair) for pair in failed}
    free, pairs = list(good), []
    for suspect in suspects:
        partner = next((host for host in free if frozenset((suspect, host)) not in tested), None)
        if partner is not None:
            free.remove(partner)
            pairs.append((suspect, partner))
    return pairs

"""Which host is the bad one, from tests of two hosts at a time, in as few rounds as that takes.

A round tests pairs that have no host in common, so that all of them can be tested at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Pair = tuple[str, str]
PairOk = Callable[[str, str], bool]
Each = Callable[[PairOk, Sequence[Pair]], Iterable[bool]]  # carries out a round: the answer for each pair, in order

_MAX_ROUNDS = 8  # one bad host is named in three; more are needed where most hosts are bad


@dataclass(frozen=True)
class Verdict:
    """What the pairs say. A host is bad when no partner known to be good works with it."""

    bad: tuple[str, ...]
    links: tuple[Pair, ...]  # pairs that fail although both hosts work with others
    unknown: tuple[str, ...]  # never met a host known to be good: with two hosts, either may be the bad one
    rounds: int


def one_by_one(pair_ok: PairOk, pairs: Sequence[Pair]) -> Iterable[bool]:
    """A round without any haste."""
    return [pair_ok(*pair) for pair in pairs]


def find_bad_hosts(
    hosts: Sequence[str], pair_ok: PairOk, each: Each = one_by_one, max_rounds: int = _MAX_ROUNDS
) -> Verdict:
    """Name the bad hosts among `hosts`; `pair_ok(a, b)` says whether two of them work together.

    First every host meets another one: where a pair works, both are good. Then each host that failed meets good ones,
    two different ones where there are as many, so that a broken link between two good hosts blames neither.
    """
    search = _Search(pair_ok, each)
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
        search.test(_meetings(suspects, [host for host in order if host in search.good], search.failed))
    links = tuple(pair for pair in search.failed if set(pair) <= search.good)
    return Verdict(tuple(host for host in order if host in bad), links, tuple(suspects), search.rounds)


class _Search:
    """What the rounds so far have shown."""

    def __init__(self, pair_ok: PairOk, each: Each) -> None:
        self._pair_ok, self._each = pair_ok, each
        self.good: set[str] = set()
        self.failed: list[Pair] = []
        self.rounds = 0

    def test(self, pairs: Sequence[Pair]) -> None:
        self.rounds += 1
        for pair, ok in zip(pairs, self._each(self._pair_ok, pairs), strict=True):
            if ok:
                self.good.update(pair)
            else:
                self.failed.append(pair)

    def failed_with_good(self, host: str) -> set[str]:
        partners = {other for pair in self.failed if host in pair for other in pair if other != host}
        return partners & self.good


def _pairing(hosts: Sequence[str], number: int) -> list[Pair]:
    """Round `number` of a round robin (circle method): each host once, no pair twice; of odd ones one is left out."""
    seats: list[str | None] = list(hosts) if len(hosts) % 2 == 0 else [*hosts, None]
    turn = number % max(1, len(seats) - 1)
    ring = [seats[0], *seats[len(seats) - turn :], *seats[1 : len(seats) - turn]]
    half = len(ring) // 2
    facing = zip(ring[:half], reversed(ring[half:]), strict=True)
    return [(a, b) for a, b in facing if a is not None and b is not None]


def _meetings(suspects: Sequence[str], good: Sequence[str], failed: Sequence[Pair]) -> list[Pair]:
    """Each suspect with a good host that it has not met, as far as there are any that are free in this round."""
    met = {frozenset(pair) for pair in failed}
    free = list(good)
    pairs = []
    for suspect in suspects:
        partner = next((host for host in free if frozenset((suspect, host)) not in met), None)
        if partner is not None:
            free.remove(partner)
            pairs.append((suspect, partner))
    return pairs

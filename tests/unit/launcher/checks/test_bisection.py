"""The bad host is named, in few rounds, and nobody else is."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.checks.bisection import Pair, PairOk, Verdict, find_bad_hosts


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


def network(bad: Collection[str] = (), broken: Iterable[Pair] = ()) -> PairOk:
    """Pairs work unless one of them is bad or the link between them is broken."""
    cut = {frozenset(pair) for pair in broken}
    return lambda a, b: a not in bad and b not in bad and frozenset((a, b)) not in cut


@pytest.mark.parametrize("count", [3, 4, 5, 8, 64, 1023, 1024])
def test_one_bad_host_is_named_in_three_rounds(count: int) -> None:
    for number in {0, 1, count // 2, count - 1}:
        verdict = find_bad_hosts(names(count), network({f"n{number}"}))
        assert (verdict.bad, verdict.links, verdict.unknown) == ((f"n{number}",), (), ())
        assert verdict.rounds <= 3


def test_several_bad_hosts_among_a_thousand() -> None:
    bad = set(random.Random(0).sample(names(1024), 20))
    verdict = find_bad_hosts(names(1024), network(bad))
    assert set(verdict.bad) == bad
    assert verdict.unknown == ()
    assert verdict.rounds <= 3


@settings(deadline=None, max_examples=200)
@given(st.integers(3, 24), st.data())
def test_good_hosts_are_never_blamed_and_bad_ones_always_found(count: int, data: st.DataObject) -> None:
    hosts = names(count)
    bad = data.draw(st.sets(st.sampled_from(hosts), max_size=(count - 1) // 3))
    verdict = find_bad_hosts(hosts, network(bad))
    assert set(verdict.bad) | set(verdict.unknown) >= bad
    assert set(verdict.bad) <= bad
    if not verdict.unknown:
        assert set(verdict.bad) == bad


def test_a_broken_link_blames_neither_of_its_hosts() -> None:
    hosts = names(8)
    for a, b in ((0, 7), (0, 1), (3, 4), (2, 6)):
        verdict = find_bad_hosts(hosts, network(broken=[(f"n{a}", f"n{b}")]))
        assert verdict.bad == ()
        assert verdict.unknown == ()
        assert all(set(link) == {f"n{a}", f"n{b}"} for link in verdict.links)
    assert find_bad_hosts(hosts, network(broken=[("n0", "n7")])).links == (("n0", "n7"),)


def test_of_two_hosts_nobody_can_say_which() -> None:
    assert find_bad_hosts(["a", "b"], network({"b"})) == Verdict((), (), ("a", "b"), 1)


def test_where_nothing_works_nobody_is_blamed() -> None:
    verdict = find_bad_hosts(names(16), lambda a, b: False)
    assert (verdict.bad, len(verdict.unknown)) == ((), 16)
    assert verdict.rounds <= 8


def test_where_every_pair_works_there_is_no_bad_host() -> None:
    assert find_bad_hosts(names(6), network()) == Verdict((), (), (), 1)


def test_pairs_of_a_round_have_no_host_in_common_and_no_pair_is_tested_twice() -> None:
    tested: list[frozenset[str]] = []

    def watch(pair_ok: PairOk, pairs: Sequence[Pair]) -> list[bool]:
        flat = [host for pair in pairs for host in pair]
        assert len(flat) == len(set(flat))
        tested.extend(frozenset(pair) for pair in pairs)
        return [pair_ok(*pair) for pair in pairs]

    for count in (2, 5, 9, 16):
        tested.clear()
        find_bad_hosts(names(count), network(names(count)[:2]), watch)
        assert len(tested) == len(set(tested))

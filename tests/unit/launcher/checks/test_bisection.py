"""The bad host is named, in few rounds, and nobody else is."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.checks.bisection import Pair, PairTests, PairWorks, find_bad_hosts, findings


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


def network(bad: Collection[str] = (), broken: Iterable[Pair] = ()) -> PairWorks:
    """Pairs work unless one of them is bad or the link between them is broken."""
    cut = {frozenset(pair) for pair in broken}
    return lambda a, b: a not in bad and b not in bad and frozenset((a, b)) not in cut


@pytest.mark.parametrize("count", [3, 4, 5, 8, 64, 1023, 1024])
def test_one_bad_host_is_named_in_three_rounds(count: int) -> None:
    for number in {0, 1, count // 2, count - 1}:
        tests = find_bad_hosts(names(count), network({f"n{number}"}))
        assert (tests.bad, tests.links, tests.unknown) == ((f"n{number}",), (), ())
        assert tests.rounds <= 3


def test_several_bad_hosts_among_a_thousand() -> None:
    bad = set(random.Random(0).sample(names(1024), 20))
    tests = find_bad_hosts(names(1024), network(bad))
    assert set(tests.bad) == bad
    assert tests.unknown == ()
    assert tests.rounds <= 3


@settings(deadline=None, max_examples=200)
@given(st.integers(3, 24), st.data())
def test_good_hosts_are_never_blamed_and_bad_ones_always_found(count: int, data: st.DataObject) -> None:
    hosts = names(count)
    bad = data.draw(st.sets(st.sampled_from(hosts), max_size=(count - 1) // 3))
    tests = find_bad_hosts(hosts, network(bad))
    assert set(tests.bad) | set(tests.unknown) >= bad
    assert set(tests.bad) <= bad
    if not tests.unknown:
        assert set(tests.bad) == bad


def test_a_broken_link_blames_neither_of_its_hosts() -> None:
    hosts = names(8)
    for a, b in ((0, 7), (0, 1), (3, 4), (2, 6)):
        tests = find_bad_hosts(hosts, network(broken=[(f"n{a}", f"n{b}")]))
        assert tests.bad == ()
        assert tests.unknown == ()
        assert all(set(link) == {f"n{a}", f"n{b}"} for link in tests.links)
    assert find_bad_hosts(hosts, network(broken=[("n0", "n7")])).links == (("n0", "n7"),)


def test_of_two_hosts_nobody_can_say_which() -> None:
    assert find_bad_hosts(["a", "b"], network({"b"})) == PairTests((), (), ("a", "b"), 1)


def test_where_nothing_works_nobody_is_blamed() -> None:
    tests = find_bad_hosts(names(16), lambda a, b: False)
    assert (tests.bad, len(tests.unknown)) == ((), 16)
    assert tests.rounds <= 8


def test_where_every_pair_works_there_is_no_bad_host() -> None:
    assert find_bad_hosts(names(6), network()) == PairTests((), (), (), 1)


def test_no_host_is_in_two_tests_at_a_time_and_no_pair_is_tested_twice() -> None:
    lock, busy, tested = threading.Lock(), set[str](), list[frozenset[str]]()

    def pair_works(a: str, b: str) -> bool:
        with lock:
            assert not busy & {a, b}
            busy.update((a, b))
            tested.append(frozenset((a, b)))
        time.sleep(0.001)  # the other pairs of the round are tested meanwhile
        with lock:
            busy.difference_update((a, b))
        return not {a, b} & {"n0", "n1"}

    for count in (2, 5, 9, 16):
        tested.clear()
        find_bad_hosts(names(count), pair_works)
        assert len(tested) == len(set(tested))


def test_findings_name_bad_hosts_and_links() -> None:
    bad, link = findings(PairTests(("n2",), (("n0", "n1"),), (), 3))
    assert (bad.host, bad.found) == ("n2", "fails with hosts that work with each other (3 rounds of pair tests)")
    assert link.found.startswith("n0 and n1 work with other hosts, but not with each other")
    (unknown,) = findings(PairTests((), (), ("a", "b"), 1))
    assert unknown.found == "a, b: no pair works, so the bad host is unknown (1 round of pair tests)"
    (none,) = findings(PairTests((), (), (), 1))
    assert (none.status, none.host) == ("warn", "")

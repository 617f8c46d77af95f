"""The all-reduce before training, over workers that are threads here: the sum and the pairs are stubs with a fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, HashStore, PrefixStore

from launcher.checks.attempt_check import Member, Timeouts, all_reduce_errors, check_workers
from launcher.checks.collective import contribution
from launcher.errors import CollectiveFault, HostFault, LauncherError

TIMEOUTS = Timeouts(join_s=10, reduce_s=5, pair_s=5, search_s=10)
PER_HOST = 2


class Fleet:
    """Workers 0 to 2n - 1 on hosts n0, n1, ...; `broken` says of a set of hosts whether their sum comes out wrong."""

    def __init__(self, hosts: int, broken: Callable[[frozenset[str]], bool]) -> None:
        self.store = HashStore()
        self.store.set_timeout(timedelta(seconds=20))
        self.hosts = [f"n{number}" for number in range(hosts)]
        self.broken = broken
        self.pairs: list[frozenset[str]] = []
        self._meetings: dict[int, list[str]] = {}
        self._lock = threading.Condition()

    def member(self, rank: int) -> Member:
        host = rank // PER_HOST
        return Member(rank, rank % PER_HOST, f"n{host}", f"10.0.0.{host}", node_id=f"id-{host}")

    def run_task(self, host: str) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
        """A host's part in an all-reduce of two: it waits for its partner, as the real one does."""

        def run_task(task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            if task == "port":
                return {"port": int(host[1:])}
            assert task == "reduce"
            with self._lock:
                came = self._meetings.setdefault(arguments["port"], [])
                first = len(came) // 2 * 2  # of this pair: the port is its head's, which may head another one later
                came.append(host)
                self._lock.notify_all()
                self._lock.wait_for(lambda: len(came) >= first + 2, timeout=5)
                met = frozenset(came[first : first + 2])
                self.pairs.append(met)
            return {"problems": [], "wrong": 3 * self.broken(met), "bus_bytes_per_s": 1.0}

        return run_task

    def run(
        self, all_reduce: Callable[[int], int] | None = None, timeouts: Timeouts = TIMEOUTS
    ) -> list[LauncherError | None]:
        """What each worker raises."""
        all_hosts = frozenset(self.hosts)
        world_size = PER_HOST * len(self.hosts)
        raised: list[LauncherError | None] = [None] * world_size

        def work(rank: int) -> None:
            me = self.member(rank)
            sums = (lambda: 7 * self.broken(all_hosts)) if all_reduce is None else (lambda: all_reduce(rank))
            try:
                check_workers(self.store, me, world_size, sums, timeouts, self.run_task(me.host))
            except LauncherError as error:
                raised[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        return raised


def test_workers_whose_sum_is_right_go_on_and_no_pair_is_tested() -> None:
    fleet = Fleet(3, broken=lambda hosts: False)
    assert fleet.run() == [None] * 6
    assert fleet.pairs == []


def test_a_bad_host_is_named_on_every_worker() -> None:
    errors = Fleet(4, broken=lambda hosts: "n2" in hosts).run()
    for error in errors:
        assert isinstance(error, HostFault)
        assert (error.host, error.rank, error.node_id, error.skip_shutdown) == ("n2", 4, "id-2", False)
        assert "7 elements of the sum wrong" in str(error)


def test_an_all_reduce_that_hangs_names_the_host_in_time() -> None:
    over = threading.Event()
    fleet = Fleet(3, broken=lambda hosts: "n1" in hosts)
    try:
        errors = fleet.run(lambda rank: int(over.wait(60)), Timeouts(join_s=10, reduce_s=0.1, pair_s=5, search_s=10))
    finally:
        over.set()
    for error in errors:
        assert isinstance(error, HostFault)
        assert (error.host, error.skip_shutdown) == ("n1", True)  # gone: the collective still hangs in this process
        assert "no sum within 0.1 s" in str(error)


def test_of_two_hosts_neither_is_blamed() -> None:
    errors = Fleet(2, broken=lambda hosts: True).run()
    assert {type(error) for error in errors} == {CollectiveFault}
    assert "no pair works, so the bad host is unknown" in str(errors[0])


def test_a_link_blames_neither_end() -> None:
    errors = Fleet(4, broken=lambda hosts: {"n0", "n3"} <= hosts).run()
    assert {type(error) for error in errors} == {CollectiveFault}
    assert "n0 and n3 work with other hosts, but not with each other" in str(errors[0])


def test_the_only_host_is_to_blame_for_its_own_sum() -> None:
    errors = Fleet(1, broken=lambda hosts: True).run()
    assert [type(error) for error in errors] == [HostFault, HostFault]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_worker_that_never_joins_is_named(kind: str, tmp_path: Path) -> None:
    store = HashStore() if kind == "memory" else FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(CollectiveFault, match=r"only 1 of 2 workers .* ranks that never joined: 1"):
        check_workers(store, Member(0, 0, "n0", ""), 2, lambda: 0, Timeouts(join_s=0.1))


def test_an_all_reduce_that_hangs_is_recorded_when_another_worker_has_ended() -> None:
    store, never = HashStore(), threading.Event()
    store.set("member/1", "{}")
    store.add("joined", 1)  # and then it is killed
    with pytest.raises(CollectiveFault, match="only 1 of 2 workers") as raised:
        check_workers(store, Member(0, 0, "n0", ""), 2, lambda: never.wait() + 0, Timeouts(join_s=5, reduce_s=0.1))
    never.set()
    assert raised.value.skip_shutdown


def test_the_sum_of_the_training_group_is_right_and_a_wrong_addend_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    store, cpu = HashStore(), torch.device("cpu")
    dist.init_process_group("gloo", store=PrefixStore("group", store), rank=0, world_size=1)
    try:
        assert all_reduce_errors(0, 1, cpu, 10) == 0
        monkeypatch.setattr("launcher.checks.attempt_check.contribution", lambda *asked: contribution(*asked) + (1 / 8))
        assert all_reduce_errors(0, 1, cpu, 10) == 2**18 // 4
    finally:
        dist.destroy_process_group()

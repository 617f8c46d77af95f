"""The all-reduce of an attempt's workers before training. If it fails, the bad host is found.

The all-reduce uses the process group that will train, so it starts no processes. If its sum is wrong or does
not arrive, the hosts are tested in pairs, in separate processes. Every wait has a time limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from launcher.checks import bisection, tasks
from launcher.checks.cluster import pair_tests
from launcher.checks.collective import contribution, expected
from launcher.checks.finding import NoAnswerError, call_within
from launcher.checks.hosts import Host
from launcher.checks.store_hosts import RunTask, StoreHosts, serve
from launcher.errors import CollectiveFault, HostFault, LauncherError
from launcher.formatting import count, printable_lines

# Bytes of the sums: NCCL sends small ones with other protocols than large ones.
SIZES = {"gloo": (2**18,), "nccl": (2**12, 2**24)}

_RESULT_S = 30.0  # for rank 0 to write its result, after the time for the search

AllReduce = Callable[[], int]  # in the workers' process group; returns the number of wrong elements in the sums


@dataclass(frozen=True)
class Member:
    """A worker of the attempt."""

    rank: int
    local_rank: int
    host: str
    address: str  # where the other workers reach its host
    node_id: str | None = None  # Ray's name of the host
    gpus: int = 0  # that it may use


@dataclass(frozen=True)
class Timeouts:
    """Seconds that each part of the check may take."""

    join_s: float = 120.0  # for all workers to join: each checks its host and its GPU before
    reduce_s: float = 60.0  # assumption: NCCL creates its communicators in the first all-reduce, on 1,024 GPUs too
    pair_s: float = 50.0  # for a round of pairs; starting their processes takes most of it
    search_s: float = 170.0  # three rounds find one bad host


def check_workers(
    store: Store,
    me: Member,
    world_size: int,
    all_reduce: AllReduce,
    timeouts: Timeouts = Timeouts(),
    run_task: RunTask = tasks.run_task,
) -> None:
    """Run the all-reduce; every worker calls this. `store` is empty and shared by all workers.

    Raises HostFault if a bad host is found, CollectiveFault if the all-reduce fails and no single host is to blame. The
    error's `gone` is set if a collective hangs in this process.
    """
    store.set(f"member/{me.rank}", json.dumps(asdict(me)))
    _barrier(store, "joined", world_size, timeouts.join_s)
    problem, hangs = _problem_of(all_reduce, timeouts.reduce_s)
    if problem:
        store.set(f"problem/{me.rank}", problem)
        store.add("problems", 1)
    try:
        # Twice: a worker that fails at once waits for those that reach their time limit.
        _barrier(store, "done", world_size, 2 * timeouts.reduce_s)
        if not store.add("problems", 0):
            return
        raise _search(store, me, world_size, timeouts, run_task)
    except LauncherError as error:
        error.skip_shutdown = hangs
        raise


def all_reduce_errors(rank: int, world_size: int, device: torch.device, seconds: float) -> int:
    """Sum over the workers of the default process group; returns the number of wrong elements."""
    group, wrong = dist.group.WORLD, 0
    assert group is not None
    backend = dist.get_backend()
    for num_bytes in SIZES.get(backend, SIZES["gloo"]):
        summed = contribution(rank, num_bytes // 4, device)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.SUM
        if backend == "gloo":  # NCCL would end the process
            options.timeout = timedelta(seconds=seconds)
        group.allreduce([summed], options).wait()
        wrong += int((summed != expected(world_size, len(summed), device)).sum())
    return wrong


def group_store(attempt: int) -> Store:
    """The store of the default process group, with a prefix for this attempt's check."""
    return PrefixStore(f"check-{attempt}", dist.distributed_c10d._get_default_store())


def _barrier(store: Store, name: str, world_size: int, seconds: float) -> None:
    """Wait for all workers, with two requests per worker. CollectiveFault after `seconds`."""
    if store.add(name, 1) == world_size:
        store.set(f"{name}/all", "1")
    try:
        store.wait([f"{name}/all"], timedelta(seconds=seconds))
    except RuntimeError:  # a FileStore raises it after the timeout; the other stores DistStoreError, a subclass
        missing = [str(rank) for rank in range(world_size) if not store.check([f"member/{rank}"])]
        absent = f"ranks that never joined: {', '.join(missing[:10])}" if missing else "all joined, so one has ended"
        raise CollectiveFault(
            f"the check before training: only {store.add(name, 0)} of {count(world_size, 'worker')} reached "
            f"'{name}' within {seconds:g} s; {absent}"
        ) from None


def _problem_of(all_reduce: AllReduce, seconds: float) -> tuple[str, bool]:
    """The problem of the all-reduce, or an empty text; and whether it still hangs."""
    try:
        wrong = call_within(seconds + 1, all_reduce, "all-reduce")  # the backend's own time limit comes first
    except NoAnswerError:
        return f"no sum within {seconds:g} s", True
    except RuntimeError as error:  # torch's errors too
        return f"{type(error).__name__}: {printable_lines(error)[0]}", False
    return (f"{count(wrong, 'element')} of the sum wrong" if wrong else ""), False


def _search(store: Store, me: Member, world_size: int, timeouts: Timeouts, run_task: RunTask) -> LauncherError:
    """The error with the bad host, the same on all workers. Rank 0 asks the first worker of each host to run tests."""
    if me.rank == 0:
        members = [_member(store, rank) for rank in range(world_size)]
        store.set("result", json.dumps(_result(store, members, timeouts, run_task)))
    elif me.local_rank == 0:
        serve(store, me.rank, timeouts.search_s, run_task)
    store.wait(["result"], timedelta(seconds=timeouts.search_s + _RESULT_S))
    problem, rank = json.loads(store.get("result"))
    bad = None if rank is None else _member(store, rank)
    _leave_last(store, me, world_size)
    return CollectiveFault(problem) if bad is None else HostFault(bad.host, bad.rank, problem, bad.node_id)


def _member(store: Store, rank: int) -> Member:
    return Member(**json.loads(store.get(f"member/{rank}")))


def _result(store: Store, members: Sequence[Member], timeouts: Timeouts, run_task: RunTask) -> tuple[str, int | None]:
    """The problem, and the first rank of the first bad host; None if no single host is to blame."""
    first = next(member.rank for member in members if store.check([f"problem/{member.rank}"]))
    problem = f"an all-reduce over {len(members)} workers fails: {store.get(f'problem/{first}').decode()}"
    leaders = [member for member in members if member.local_rank == 0]
    if len(leaders) == 1:
        return f"{problem}; all workers are on this host", 0
    on_hosts = {one.rank: (one.host, Host(one.address, workers=1, gpus=one.gpus, cpus=0)) for one in leaders}
    hosts = StoreHosts(store, on_hosts, run_task)
    deadline = time.monotonic() + timeouts.search_s

    def seconds() -> float:
        return max(0.1, min(timeouts.pair_s, deadline - time.monotonic()))

    tests = pair_tests(hosts, list(hosts.hosts), all(member.gpus for member in members), seconds)
    hosts.end([])
    found = bisection.findings(tests)
    first_ranks = dict(zip(hosts.hosts, on_hosts, strict=True))
    texts = dict.fromkeys(f"{f'{finding.host} ' * bool(finding.host)}{finding.found}" for finding in found)
    return f"{problem}; {'; '.join(texts)}", first_ranks[tests.bad[0]] if tests.bad else None


def _leave_last(store: Store, me: Member, world_size: int, seconds: float = 5.0) -> None:
    """Rank 0's process may hold the store: it waits until all other workers have read the result."""
    num_read = store.add("read", 1)
    deadline = time.monotonic() + seconds
    while me.rank == 0 and num_read < world_size and time.monotonic() < deadline:
        time.sleep(0.02)
        num_read = store.add("read", 0)

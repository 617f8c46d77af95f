"""An attempt's workers add numbers up together before they train. Where that fails, the bad host is named.

The all-reduce itself is of the group that will train: nothing has to be started for it. Only where its sum is wrong, or
does not come, are hosts tested two at a time, in processes of their own. Every wait has an end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from launcher.checks import tasks
from launcher.checks.bisection import Verdict
from launcher.checks.cluster import blamed
from launcher.checks.collective import contribution, expected
from launcher.checks.finding import number
from launcher.checks.store_hosts import Perform, StoreHost, StoreHosts, serve
from launcher.errors import CollectiveFault, HostFault, LauncherError

# Bytes of the sums: small ones go through other protocols of NCCL than large ones.
SIZES = {"gloo": (2**18,), "nccl": (2**12, 2**24)}

_VERDICT_S = 30.0  # for rank 0 to end the hosts' processes and say what it found, after the time for naming

AddUp = Callable[[], int]  # the group's own all-reduce; returns how many elements of its sums are wrong


@dataclass(frozen=True)
class Member:
    """A worker of the attempt."""

    rank: int
    local_rank: int
    host: str
    address: str  # where the others reach its host
    node_id: str | None = None  # Ray's name of the host
    gpus: int = 0  # that it may use


@dataclass(frozen=True)
class Limits:
    """How long each part may take."""

    come_s: float = 120.0  # for all workers to come: each looks at its host and its GPU before
    reduce_s: float = 60.0  # assumption: NCCL makes its communicators in the first all-reduce, on 1,024 GPUs too
    pair_s: float = 50.0  # for a round of pairs; the start of their processes takes most of it
    name_s: float = 170.0  # three rounds name one bad host


def check_together(
    store: Any,
    me: Member,
    world_size: int,
    add_up: AddUp,
    limits: Limits = Limits(),
    perform: Perform = tasks.perform,
) -> None:
    """Add numbers up with all other workers, each of which calls this too; `store` is empty, and seen by all of them.

    Raises HostFault where a bad host is found, CollectiveFault where the sum fails and no host is to blame for it. An
    error with `gone` set says that a collective hangs in this process.
    """
    store.set(f"member/{me.rank}", json.dumps(asdict(me)))
    _meet(store, "come", world_size, limits.come_s)
    problem, hangs = _bounded(add_up, limits.reduce_s)
    if problem:
        store.set(f"problem/{me.rank}", problem)
        store.add("problems", 1)
    try:
        _meet(store, "done", world_size, 2 * limits.reduce_s)  # who failed at once waits for those whose time runs out
    except CollectiveFault as fault:
        fault.gone = hangs
        raise
    if not store.add("problems", 0):
        return
    error = _named(store, me, world_size, limits, perform)
    error.gone = hangs
    raise error


def reduce_in_group(rank: int, world_size: int, device: torch.device, seconds: float) -> int:
    """The sum over the workers of the default process group, by its own all-reduce; elements of it that are wrong."""
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


def group_store(attempt: int) -> Any:
    """The store of the default process group, for the keys of this attempt's check alone."""
    return PrefixStore(f"check-{attempt}", dist.distributed_c10d._get_default_store())


def _meet(store: Any, name: str, world_size: int, seconds: float) -> None:
    """Wait until all workers are here: one request a worker, and one that waits. CollectiveFault after `seconds`."""
    if store.add(name, 1) == world_size:
        store.set(f"{name}/all", "1")
    try:
        store.wait([f"{name}/all"], timedelta(seconds=seconds))
    except dist.DistStoreError:
        here = store.add(name, 0)
        missing = [str(rank) for rank in range(world_size) if not store.check([f"member/{rank}"])]
        said = f": {', '.join(missing[:10])}" if missing else ""
        raise CollectiveFault(
            f"only {here} of {world_size} workers came to the check before training within {seconds:g} s; "
            f"ranks that never came{said or ': none, so one has ended since'}"
        ) from None


def _bounded(add_up: AddUp, seconds: float) -> tuple[str, bool]:
    """What is wrong with the all-reduce, in words, and whether it still hangs; "" where all is well."""
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["wrong"] = add_up()
        except Exception as error:  # judged below
            box["error"] = error

    thread = threading.Thread(target=run, name="all-reduce", daemon=True)
    thread.start()
    thread.join(seconds + 1)  # a backend's own time limit comes first
    if thread.is_alive():
        return f"no sum within {seconds:g} s", True
    error = box.get("error")
    if isinstance(error, RuntimeError):  # so are torch's
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", False
    if error is not None:
        raise error  # a mistake of ours
    return (f"{number(box['wrong'], 'element')} of the sum wrong" if box["wrong"] else ""), False


def _named(store: Any, me: Member, world_size: int, limits: Limits, perform: Perform) -> LauncherError:
    """The error that says who is to blame, the same on all workers: rank 0 asks the first worker of each host."""
    if me.rank == 0:
        members = [Member(**json.loads(store.get(f"member/{rank}"))) for rank in range(world_size)]
        store.set("verdict", json.dumps(_judged(store, members, limits, perform)))
    elif me.local_rank == 0:
        serve(store, me.rank, limits.name_s, perform)
    store.wait(["verdict"], timedelta(seconds=limits.name_s + _VERDICT_S))
    told = json.loads(store.get("verdict"))
    _leave_last(store, me, world_size)
    if told["rank"] is None:
        return CollectiveFault(told["problem"])
    return HostFault(told["host"], told["rank"], told["problem"], told["node_id"])


def _judged(store: Any, members: Sequence[Member], limits: Limits, perform: Perform) -> dict[str, Any]:
    """What the pairs say: {"problem", "rank", "host", "node_id"}, the last three of the first bad host, or None."""
    first = next(rank for rank in range(len(members)) if store.check([f"problem/{rank}"]))
    problem = f"an all-reduce over {len(members)} workers fails: {store.get(f'problem/{first}').decode()}"
    leaders = [member for member in members if member.local_rank == 0]
    if len(leaders) == 1:
        return _blame(members[0], f"{problem}; all workers are on this host")
    hosts = StoreHosts(
        store,
        [StoreHost(one.rank, one.host, one.address, workers=1, gpus=one.gpus) for one in leaders],
        perform,
    )
    by_name = dict(zip(hosts.names, leaders, strict=True))
    deadline = time.monotonic() + limits.name_s

    def seconds() -> float:
        return max(0.1, min(limits.pair_s, deadline - time.monotonic()))

    gpus = all(member.gpus for member in members)
    verdict = blamed(hosts, hosts.names, gpus, seconds)
    hosts.end([])
    return _in_words(verdict, problem, by_name)


def _in_words(verdict: Verdict, problem: str, members: dict[str, Member]) -> dict[str, Any]:
    rounds = number(verdict.rounds, "round") + " of pairs"
    if verdict.bad:
        others = f"; so do {', '.join(verdict.bad[1:])}" if len(verdict.bad) > 1 else ""
        said = f"{problem}; it exchanges with no host that works with others ({rounds}){others}"
        return _blame(members[verdict.bad[0]], said)
    if verdict.links:
        links = ", ".join(f"{a} and {b}" for a, b in verdict.links)
        said = f"{links} work with others, and not with each other ({rounds})"
    elif verdict.unknown:
        said = f"{', '.join(verdict.unknown)}: no pair works, so none of them can be cleared ({rounds})"
    else:
        said = f"every pair of hosts works ({rounds}): only all together they fail"
    return {"problem": f"{problem}; {said}", "rank": None}


def _blame(member: Member, problem: str) -> dict[str, Any]:
    return {"problem": problem, "rank": member.rank, "host": member.host, "node_id": member.node_id}


def _leave_last(store: Any, me: Member, world_size: int, seconds: float = 5.0) -> None:
    """Rank 0's process may be the one that holds the store: it goes when all others know the verdict."""
    told = store.add("told", 1)
    deadline = time.monotonic() + seconds
    while me.rank == 0 and told < world_size and time.monotonic() < deadline:
        time.sleep(0.02)
        told = store.add("told", 0)

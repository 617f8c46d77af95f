"""The doctor under torchrun: one process a host takes part, and rank 0's asks the others through the group's store.

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-endpoint HOST:PORT ... -m launcher doctor CONFIG
    srun torchrun ... -m launcher doctor CONFIG                     (inside an allocation of SLURM)

How they are asked is in `launcher.checks.store_hosts`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from launcher.checks.cluster import cluster_findings
from launcher.checks.finding import Finding
from launcher.checks.network import own_address
from launcher.checks.store_hosts import StoreHost, StoreHosts, serve
from launcher.run_config import RunConfig

_MEET_S = 60  # for all hosts to come
_PREFIX = "doctor"


def group_findings(
    config: RunConfig | None, seconds: float, *, quick: bool = False, profile: Mapping[str, str] | None = None
) -> list[Finding]:
    """The findings on all hosts of torchrun's group, the same on each: their exit codes must be equal.

    torchrun waits five minutes for the other hosts where one ended well and another did not. Of several processes on
    a host the first one takes part; the others return at once, with nothing.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return []
    store, rank, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=_MEET_S))))
    store = PrefixStore(_PREFIX, store)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    introduce(store, rank // local)
    if rank != 0:
        return [Finding(**one) for one in serve(store, rank // local, seconds + _MEET_S)]
    hosts = StoreHosts(store, met(store, int(os.environ["WORLD_SIZE"]) // local, local, config))
    findings: list[Finding] = []
    try:
        findings = cluster_findings(hosts, config, seconds, quick=quick, profile=profile)
    finally:
        hosts.end(findings)
    return findings


def met(store: Any, count: int, local: int, config: RunConfig | None) -> list[StoreHost]:
    """The hosts 0 to `count` - 1, each with `local` processes, once all of them have introduced themselves."""
    facts = [json.loads(store.get(f"{number}/host")) for number in range(count)]
    gpus, cpus = (0, 0) if config is None else (config.resources.gpus_per_worker, config.resources.cpus_per_worker)
    return [
        StoreHost(number, fact["host"], fact["address"], local, local * gpus, local * cpus)
        for number, fact in enumerate(facts)
    ]


def introduce(store: Any, number: int) -> None:
    """Say who host `number` is, and under which address the others reach it."""
    facts = {"host": socket.gethostname(), "address": own_address(os.environ.get("MASTER_ADDR", ""))}
    store.set(f"{number}/host", json.dumps(facts))

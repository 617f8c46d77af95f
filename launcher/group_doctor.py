"""The doctor under torchrun: one process a host takes part, and rank 0's asks the others through the group's store.

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-endpoint HOST:PORT ... -m launcher doctor CONFIG
    srun torchrun ... -m launcher doctor CONFIG                     (inside an allocation of SLURM)

No collective is run in these processes: what may hang runs in children of theirs, which are killed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from launcher.checks.cluster import Call, cluster_findings
from launcher.checks.finding import Finding
from launcher.checks.network import own_address
from launcher.checks.tasks import perform
from launcher.run_config import RunConfig

_POLL_S = 0.02
_MEET_S = 60  # for all hosts to come
_END_S = 5  # for all hosts to hear that it is over
_PREFIX = "doctor"
_END = "end"


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
    if rank != 0:
        return [Finding(**one) for one in serve(store, rank // local, seconds + _MEET_S)]
    hosts = StoreHosts(store, int(os.environ["WORLD_SIZE"]) // local, local, config)
    findings: list[Finding] = []
    try:
        findings = cluster_findings(hosts, config, seconds, quick=quick, profile=profile)
    finally:
        hosts.end(findings)
    return findings


class StoreHosts:
    """`Hosts` that answer through a store: host k reads "k/task/n" and writes "k/answer/n". Host 0 is this one."""

    def __init__(self, store: Any, count: int, local: int, config: RunConfig | None) -> None:
        self._store = store
        self._turns = [0] * count
        self._lock = threading.Lock()
        introduce(store, 0)
        facts = [json.loads(store.get(f"{number}/host")) for number in range(count)]
        taken = [fact["host"] for fact in facts]
        names = [name if taken.count(name) == 1 else f"{name}#{number}" for number, name in enumerate(taken)]
        self._numbers = {name: number for number, name in enumerate(names)}
        resources = None if config is None else config.resources
        self.names: Sequence[str] = names
        self.addresses: Mapping[str, str] = {name: fact["address"] for name, fact in zip(names, facts, strict=True)}
        self.workers: Mapping[str, int] = dict.fromkeys(names, local)
        self.gpus: Mapping[str, int] = dict.fromkeys(names, local * resources.gpus_per_worker if resources else 0)
        self.cpus: Mapping[str, int] = dict.fromkeys(names, local * resources.cpus_per_worker if resources else 0)

    def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, dict[str, Any] | str]:
        """See `Hosts.run`."""
        deadline = time.monotonic() + seconds
        asked = {host: self._ask(self._numbers[host], *call) for host, call in calls.items()}
        answers: dict[str, dict[str, Any] | str] = {}
        while len(answers) < len(asked):
            for host, key in asked.items():
                if host not in answers and (text := self._look(key)) is not None:
                    answers[host] = json.loads(text)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return {host: answers.get(host, f"no answer within {seconds:.3g} s") for host in calls}

    def end(self, findings: Sequence[Finding]) -> None:
        """Let the other hosts go, with what was found."""
        told = {"findings": [finding.described() for finding in findings]}
        keys = [self._ask(number, _END, told) for number in range(1, len(self._turns))]
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and not all(self._look(key) for key in keys):
            time.sleep(_POLL_S)  # this process's host may be the one that holds the store

    def _ask(self, number: int, task: str, arguments: Mapping[str, Any]) -> str:
        """Give host `number` a task; returns the key of its answer."""
        order = json.dumps({"task": task, "arguments": dict(arguments)})
        with self._lock:
            turn = self._turns[number]
            self._turns[number] += 1
            if number != 0:
                self._store.set(f"{number}/task/{turn}", order)
        key = f"{number}/answer/{turn}"
        if number == 0:
            threading.Thread(target=self._answer_here, args=(key, order), name="doctor", daemon=True).start()
        return key

    def _answer_here(self, key: str, order: str) -> None:
        answer = carried_out(order)
        with self._lock:
            self._store.set(key, answer)

    def _look(self, key: str) -> bytes | None:
        with self._lock:
            return self._store.get(key) if self._store.check([key]) else None


def serve(store: Any, number: int, seconds: float) -> list[dict[str, Any]]:
    """Carry out tasks as host `number`, one after the other, until told to end; returns what was found on all hosts.

    RuntimeError where nothing comes for `seconds`: rank 0 is gone.
    """
    introduce(store, number)
    turn = 0
    while True:
        key = f"{number}/task/{turn}"
        store.wait([key], timedelta(seconds=seconds))
        order = store.get(key).decode()
        asked = json.loads(order)
        if asked["task"] == _END:
            store.set(f"{number}/answer/{turn}", "null")
            findings: list[dict[str, Any]] = asked["arguments"]["findings"]
            return findings
        store.set(f"{number}/answer/{turn}", carried_out(order))
        turn += 1


def carried_out(order: str) -> str:
    """The answer to an order as JSON: what the task returned, or in words what it raised."""
    asked = json.loads(order)
    try:
        return json.dumps(perform(asked["task"], asked["arguments"]))
    except Exception as error:  # told to rank 0, which makes a finding of it
        return json.dumps(f"{type(error).__name__}: {error}")


def introduce(store: Any, number: int) -> None:
    """Say who host `number` is, and under which address the others reach it."""
    facts = {"host": socket.gethostname(), "address": own_address(os.environ.get("MASTER_ADDR", ""))}
    store.set(f"{number}/host", json.dumps(facts))

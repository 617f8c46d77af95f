"""Hosts that are asked to do tasks through a store of torch.distributed: host K reads "K/task/n", writes "K/answer/n".

No collective is run by those who ask and answer: what may hang runs in children of theirs, which are killed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from launcher.checks import tasks
from launcher.checks.cluster import Call, cluster_findings
from launcher.checks.finding import Finding
from launcher.checks.network import own_address
from launcher.config.schema import RunConfig

_POLL_S = 0.02
_END_S = 5  # for all hosts to hear that it is over
_END = "end"

Perform = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]  # carries a task out; see `launcher.checks.tasks`


@dataclass(frozen=True)
class StoreHost:
    """A host: under which number it serves, its name, and where the others reach it."""

    number: int
    name: str
    address: str
    workers: int
    gpus: int = 0
    cpus: int = 0


class StoreHosts:
    """`Hosts` that answer through a store. The first one is this one; names that several have get their number."""

    def __init__(self, store: Any, hosts: Sequence[StoreHost], perform: Perform = tasks.perform) -> None:
        self._store, self._perform = store, perform
        self._here, self._turns = hosts[0].number, {host.number: 0 for host in hosts}
        self._lock = threading.Lock()
        taken = [host.name for host in hosts]
        by_name = {host.name if taken.count(host.name) == 1 else f"{host.name}#{host.number}": host for host in hosts}
        self._numbers = {name: host.number for name, host in by_name.items()}
        self.names: Sequence[str] = list(by_name)
        self.addresses: Mapping[str, str] = {name: host.address for name, host in by_name.items()}
        self.workers: Mapping[str, int] = {name: host.workers for name, host in by_name.items()}
        self.gpus: Mapping[str, int] = {name: host.gpus for name, host in by_name.items()}
        self.cpus: Mapping[str, int] = {name: host.cpus for name, host in by_name.items()}

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
        keys = [self._ask(number, _END, told) for number in self._turns if number != self._here]
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and not all(self._look(key) for key in keys):
            time.sleep(_POLL_S)  # this process's host may be the one that holds the store

    def _ask(self, number: int, task: str, arguments: Mapping[str, Any]) -> str:
        """Give host `number` a task; returns the key of its answer."""
        order = json.dumps({"task": task, "arguments": dict(arguments)})
        with self._lock:
            turn = self._turns[number]
            self._turns[number] += 1
            if number != self._here:
                self._store.set(f"{number}/task/{turn}", order)
        key = f"{number}/answer/{turn}"
        if number == self._here:
            threading.Thread(target=self._answer_here, args=(key, order), name="doctor", daemon=True).start()
        return key

    def _answer_here(self, key: str, order: str) -> None:
        answer = carried_out(order, self._perform)
        with self._lock:
            self._store.set(key, answer)

    def _look(self, key: str) -> bytes | None:
        with self._lock:
            return self._store.get(key) if self._store.check([key]) else None


def serve(store: Any, number: int, seconds: float, perform: Perform = tasks.perform) -> list[dict[str, Any]]:
    """Carry out tasks as host `number`, one after the other, until told to end; returns what was found on all hosts.

    RuntimeError where nothing comes for `seconds`: rank 0 is gone.
    """
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
        store.set(f"{number}/answer/{turn}", carried_out(order, perform))
        turn += 1


def carried_out(order: str, perform: Perform) -> str:
    """The answer to an order as JSON: what the task returned, or in words what it raised."""
    asked = json.loads(order)
    try:
        return json.dumps(perform(asked["task"], asked["arguments"]))
    except Exception as error:  # told to rank 0, which makes a finding of it
        return json.dumps(f"{type(error).__name__}: {error}")


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

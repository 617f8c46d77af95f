"""Hosts that carry out tasks through a store of torch.distributed: host K reads "K/task/n" and writes "K/answer/n".

These processes run no collective: what may hang runs in child processes, which are killed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from launcher.checks import tasks
from launcher.checks.children import Answer
from launcher.checks.cluster import cluster_findings
from launcher.checks.finding import Finding
from launcher.checks.hosts import Call, Host, unique_names
from launcher.checks.network import own_address
from launcher.config.schema import RunConfig, ranks
from resnet_dist.input_files import printable

_POLL_S = 0.02
_END_S = 5  # for all hosts to read the end
_END = "end"
_MEET_S = 60  # for all hosts to register

RunTask = Callable[[str, Mapping[str, Any]], Answer]  # see `launcher.checks.tasks.run_task`


class StoreHosts:
    """`Hosts` that answer through a store, by the number under which each serves. The first one is this process's."""

    def __init__(self, store: Store, hosts: Mapping[int, tuple[str, Host]], run_task: RunTask = tasks.run_task) -> None:
        self._store, self._run_task = store, run_task
        self._here, self._turns = next(iter(hosts)), dict.fromkeys(hosts, 0)
        self._lock = threading.Lock()
        names = unique_names([name for name, _ in hosts.values()], [f"#{number}" for number in hosts])
        self._numbers = dict(zip(names, hosts, strict=True))
        self.hosts: Mapping[str, Host] = {name: hosts[number][1] for name, number in self._numbers.items()}

    def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Answer | str]:
        """See `Hosts.run`."""
        deadline = time.monotonic() + seconds
        keys = {host: self._send(self._numbers[host], *call) for host, call in calls.items()}
        answers: dict[str, Answer | str] = {}
        while True:
            for host in keys.keys() - answers.keys():
                if (text := self._get(keys[host])) is not None:
                    answers[host] = json.loads(text)
            if len(answers) == len(keys) or time.monotonic() > deadline:
                return {host: answers.get(host, f"no answer within {seconds:.3g} s") for host in calls}
            time.sleep(_POLL_S)

    def end(self, findings: Sequence[Finding]) -> None:
        """End the service of the other hosts, and send them the findings."""
        content = {"findings": [finding.described() for finding in findings]}
        keys = [self._send(number, _END, content) for number in self._turns if number != self._here]
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and not all(self._get(key) for key in keys):
            time.sleep(_POLL_S)  # this host may hold the store

    def _send(self, number: int, task: str, arguments: Mapping[str, Any]) -> str:
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
        answer = _answer_to(order, self._run_task)
        with self._lock:
            self._store.set(key, answer)

    def _get(self, key: str) -> bytes | None:
        with self._lock:
            return self._store.get(key) if self._store.check([key]) else None


def serve(store: Store, number: int, seconds: float, run_task: RunTask = tasks.run_task) -> list[Finding]:
    """Carry out tasks as host `number`, one after the other, until the end; returns the findings on all hosts.

    RuntimeError if no task comes for `seconds`: rank 0 has ended.
    """
    turn = 0
    while True:
        key = f"{number}/task/{turn}"
        store.wait([key], timedelta(seconds=seconds))
        order = store.get(key).decode()
        sent = json.loads(order)
        if sent["task"] == _END:
            store.set(f"{number}/answer/{turn}", "null")
            return [Finding(**one) for one in sent["arguments"]["findings"]]
        store.set(f"{number}/answer/{turn}", _answer_to(order, run_task))
        turn += 1


def _answer_to(order: str, run_task: RunTask) -> str:
    """The answer to an order as JSON: the task's result, or its exception as text."""
    sent = json.loads(order)
    try:
        return json.dumps(run_task(sent["task"], sent["arguments"]))
    except Exception as error:  # rank 0 makes a finding of it
        return json.dumps(f"{type(error).__name__}: {printable(str(error))}")


def group_findings(
    config: RunConfig | None, seconds: float, *, quick: bool = False, profile: Mapping[str, str] | None = None
) -> list[Finding]:
    """The findings on all hosts of torchrun's group, the same on each host, so that the exit codes are equal.

    (torchrun waits five minutes for the other hosts if their exit codes differ.) The first process of each host takes
    part; the others return an empty list at once.
    """
    own = ranks()
    if own.local_rank != 0:
        return []
    group_store, rank, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=_MEET_S))))
    store = PrefixStore("doctor", group_store)
    local = own.local_world_size
    register(store, rank // local, local, config)
    if rank != 0:
        return serve(store, rank // local, seconds + _MEET_S)
    hosts = StoreHosts(store, registered(store, own.world_size // local))
    findings: list[Finding] = []
    try:
        findings = cluster_findings(hosts, config, seconds, quick=quick, profile=profile)
    finally:
        hosts.end(findings)
    return findings


def register(store: Store, number: int, workers: int, config: RunConfig | None) -> None:
    """Write the name and the properties of this host, as number `number` with `workers` processes."""
    gpus, cpus = (0, 0) if config is None else (config.resources.gpus_per_worker, config.resources.cpus_per_worker)
    host = Host(own_address(os.environ.get("MASTER_ADDR", "")), workers, workers * gpus, workers * cpus)
    store.set(f"{number}/host", json.dumps([socket.gethostname(), asdict(host)]))


def registered(store: Store, count: int) -> dict[int, tuple[str, Host]]:
    """Name and properties of the hosts 0 to `count` - 1, once all of them have registered."""
    entries = {number: json.loads(store.get(f"{number}/host")) for number in range(count)}
    return {number: (name, Host(**host)) for number, (name, host) in entries.items()}

"""The Ray cluster as a run needs to see it: who is there, who is leaving, how many workers each node can hold."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray._private import state as ray_state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launcher.config.schema import RunConfig
from launcher.errors import ClusterUnavailable
from launcher.recovery.policy import Policy, workers_for

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # assumption: a node that starts no process in this time, on a busy machine too, is not there
ASK_AGAIN_S = 30.0  # so that nodes that stay silent cost a waiting run a part of its time only
SETTLE_S = 10.0  # for Ray to give back what an attempt that has ended held
POLL_S = 0.5
_HEAD = "node:__internal_head__"  # Ray's own resource, which its head alone has


@dataclass(frozen=True)
class Node:
    """A node that Ray believes alive."""

    node_id: str
    host: str
    ip: str
    slots: int  # workers that it can hold when it holds nothing else
    free: int  # workers that it can hold now


class Cluster:
    """The nodes of a run's Ray cluster.

    `leaving` are ids of nodes that were drained or noticed: they may still be alive, and get no worker any more.
    """

    def __init__(self, config: RunConfig) -> None:
        self.resources = {"CPU": float(config.resources.cpus_per_worker)}
        if config.resources.gpus_per_worker:
            self.resources["GPU"] = float(config.resources.gpus_per_worker)
        self.leaving: set[str] = set()
        self._silent: dict[str, float] = {}  # alive, Ray says, but they did not answer when they were last asked
        self._hosts: dict[str, str] = {}  # of every node that was ever seen

    def nodes(self) -> list[Node]:
        """The nodes that can be used, those that policy leaves out among them."""
        available = ray_state.available_resources_per_node()
        found = []
        for node in ray.nodes():
            node_id, host = node["NodeID"], node["NodeManagerHostname"]
            self._hosts[node_id] = host
            if node["Alive"] and node_id not in self.leaving and node_id not in self._silent:
                slots, free = self._room(node["Resources"]), self._room(available.get(node_id, {}))
                found.append(Node(node_id, host, node["NodeManagerAddress"], slots, free))
        return found

    def key(self, node_id: str | None) -> str | None:
        """The name that a node's faults are counted under: its host's, so that a restarted Ray does not clear them.

        Where several nodes share a host, the node's id.
        """
        if node_id is None:
            return None
        nodes = self.nodes()
        host = self._hosts.get(node_id)
        if host is None or sum(node.host == host for node in nodes) > 1:
            return node_id
        return host

    def slots(self, *, free: bool = False) -> dict[str, int]:
        """{node key: workers that it can hold}, or that it can hold now."""
        nodes = self.nodes()
        hosts = Counter(node.host for node in nodes)
        return {
            node.host if hosts[node.host] == 1 else node.node_id: node.free if free else node.slots for node in nodes
        }

    def ids(self, keys: Collection[str]) -> list[str]:
        """The ids of all nodes, alive or not, that a worker must not be placed on; `keys` are those of bad ones."""
        known = {node_id for node_id, host in self._hosts.items() if host in keys or node_id in keys}
        return sorted(known | self.leaving | set(self._silent))

    def draining(self) -> set[str]:
        """The ids of nodes that will go away."""
        return set(ray_state.state.get_draining_nodes())

    def heads(self) -> set[str]:
        """The ids of the node that Ray's head is on, and of this process's own: without either the cluster ends."""
        here = ray.get_runtime_context().get_node_id()
        return {here} | {node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]}

    def check(self, node_id: str | None) -> None:
        """Leave a node out that does not answer: Ray may take minutes to notice that it is gone."""
        if node_id is not None and len(self.nodes()) >= 2:
            self._ask(node_id)

    def wait_for_workers(
        self, policy: Policy, excluded: Collection[str], timeout_s: float, stopped: Callable[[], bool]
    ) -> int:
        """How many workers to start: at once where all nodes are free, else when they are or time is short.

        Returns 0 where `stopped` says so first. Raises ClusterUnavailable after `timeout_s`, with what is missing.
        """
        began = time.monotonic()
        while not stopped():
            self._ask_again()
            most = workers_for(policy, self.slots(), excluded)
            now = workers_for(policy, self.slots(free=True), excluded)
            waited_s = time.monotonic() - began
            if now and (now >= most or waited_s > SETTLE_S):
                return now
            own_cluster = not os.environ.get("RAY_ADDRESS")
            if waited_s > timeout_s or (own_cluster and not most and waited_s > SETTLE_S):
                raise ClusterUnavailable(self._missing(policy, excluded, waited_s))
            time.sleep(POLL_S)
        return 0

    def _ask(self, node_id: str) -> None:
        if _answers(node_id):
            self._silent.pop(node_id, None)
        else:
            self._silent[node_id] = time.monotonic()

    def _ask_again(self) -> None:
        """A node that did not answer once may only have been busy."""
        now = time.monotonic()
        due = {node_id for node_id, asked in self._silent.items() if now - asked > ASK_AGAIN_S}
        if due:
            for node_id in due & {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
                self._ask(node_id)

    def _room(self, have: dict[str, Any]) -> int:
        return int(min(have.get(name, 0.0) // needed for name, needed in self.resources.items()))

    def _missing(self, policy: Policy, excluded: Collection[str], waited_s: float) -> str:
        each = ", ".join(f"{count:g} {name}" for name, count in self.resources.items())
        nodes = self.nodes()
        found = ", ".join(f"{node.host}: room for {node.slots}, {node.free} free" for node in nodes) or "no node"
        left_out = f"; left out for their faults: {', '.join(excluded)}" if excluded else ""
        leaving = f"; leaving: {', '.join(self._hosts.get(one, one) for one in sorted(self.leaving))}"
        silent = f"; no answer from: {', '.join(sorted(self._hosts.get(one, one) for one in self._silent))}"
        return (
            f"{policy.least} workers of {each} each were not to be had within {waited_s:.0f} s. "
            f"The Ray cluster has {found}{left_out}{leaving if self.leaving else ''}"
            f"{silent if self._silent else ''}"
        )


def _answers(node_id: str) -> bool:
    """Whether a node starts a process for us in time."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    asked = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(_nothing).remote()
    try:
        ready, _ = ray.wait([asked], timeout=ANSWER_S)
        if not ready:
            ray.cancel(asked, force=True)
            return False
        ray.get(ready[0])
    except ray.exceptions.RayError as error:
        log.info("node %s does not answer: %s", node_id, error)
        return False
    return True


def _nothing() -> None:
    """A task that only shows that a node runs tasks."""

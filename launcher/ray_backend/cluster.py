"""The Ray cluster of a run: its nodes, those that leave, and the number of workers that each can hold."""

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

from launcher.config.schema import Resources
from launcher.errors import ClusterUnavailable
from launcher.formatting import count
from launcher.recovery.policy import Policy, workers_for

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # assumption: a live node starts a process in this time, on a busy machine too
ASK_AGAIN_S = 30.0  # so that silent nodes cost a waiting run only a part of its time
SETTLE_S = 10.0  # for Ray to release the resources of an ended attempt
POLL_S = 0.5
_HEAD = "node:__internal_head__"  # a resource that Ray defines on its head node only


@dataclass(frozen=True)
class Node:
    """A node that Ray lists as alive."""

    node_id: str
    host: str
    ip: str
    slots: int  # workers that it can hold in total
    free: int  # workers that it can hold now
    memory_bytes: float = 0.0  # that Ray counts


class Cluster:
    """The nodes of a Ray cluster, for workers with the given resources.

    `leaving` has the ids of nodes that are draining or received a preemption notice: they get no workers any more.
    """

    def __init__(self, per_worker: Resources) -> None:
        self.resources = {"CPU": float(per_worker.cpus_per_worker)}
        if per_worker.gpus_per_worker:
            self.resources["GPU"] = float(per_worker.gpus_per_worker)
        self.leaving: set[str] = set()
        # When nodes were asked that did not answer, although Ray lists them as alive.
        self._silent: dict[str, float] = {}
        self._hosts: dict[str, str] = {}  # of every node seen so far, by id

    def nodes(self) -> list[Node]:
        """The usable nodes, including those that the retry policy excludes."""
        available = ray_state.available_resources_per_node()
        found = []
        for node in ray.nodes():
            node_id, host = node["NodeID"], node["NodeManagerHostname"]
            self._hosts[node_id] = host
            if node["Alive"] and node_id not in self.leaving and node_id not in self._silent:
                slots, free = self._capacity(node["Resources"]), self._capacity(available.get(node_id, {}))
                memory_bytes = node["Resources"].get("memory", 0.0)
                found.append(Node(node_id, host, node["NodeManagerAddress"], slots, free, memory_bytes))
        return found

    def not_excluded(self, keys: Collection[str]) -> list[Node]:
        """The nodes that may get workers; `keys` are those of excluded nodes."""
        return [node for node in self.nodes() if not {node.host, node.node_id} & set(keys)]

    def key(self, node_id: str | None) -> str | None:
        """The key under which the failures of a node are counted: its host, so that they survive a restart of Ray.

        If several nodes share a host, the id of the node.
        """
        if node_id is None:
            return None
        nodes = self.nodes()
        host = self._hosts.get(node_id)
        if host is None or sum(node.host == host for node in nodes) > 1:
            return node_id
        return host

    def slots(self, *, free: bool = False) -> dict[str, int]:
        """{node key: workers that it can hold}, in total or now."""
        nodes = self.nodes()
        hosts = Counter(node.host for node in nodes)
        return {
            node.host if hosts[node.host] == 1 else node.node_id: node.free if free else node.slots for node in nodes
        }

    def ids(self, keys: Collection[str]) -> list[str]:
        """The ids of all nodes, alive or not, that get no workers; `keys` are those of excluded nodes."""
        known = {node_id for node_id, host in self._hosts.items() if host in keys or node_id in keys}
        return sorted(known | self.leaving | set(self._silent))

    def draining(self) -> set[str]:
        """The ids of draining nodes."""
        return set(ray_state.state.get_draining_nodes())

    def heads(self) -> set[str]:
        """The ids of the node of Ray's head and of this process's node: the run ends with either."""
        here = ray.get_runtime_context().get_node_id()
        return {here} | {node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]}

    def check(self, node_id: str | None) -> None:
        """Stop using a node that does not answer: Ray may take minutes to detect its loss."""
        if node_id is not None and len(self.nodes()) >= 2:
            self._ask(node_id)

    def wait_for_workers(
        self, policy: Policy, excluded: Collection[str], timeout_s: float, stopped: Callable[[], bool]
    ) -> int:
        """The number of workers to start, as soon as all nodes are free, or some after SETTLE_S; 0 once `stopped()`.

        Raises ClusterUnavailable after `timeout_s`, with a list of the nodes.
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
        if node_answers(node_id):
            self._silent.pop(node_id, None)
        else:
            self._silent[node_id] = time.monotonic()

    def _ask_again(self) -> None:
        """Ask silent nodes again from time to time: they may have been busy."""
        now = time.monotonic()
        due = {node_id for node_id, asked in self._silent.items() if now - asked > ASK_AGAIN_S}
        if due:
            for node_id in due & {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
                self._ask(node_id)

    def _capacity(self, have: dict[str, Any]) -> int:
        return int(min(have.get(name, 0.0) // needed for name, needed in self.resources.items()))

    def _missing(self, policy: Policy, excluded: Collection[str], waited_s: float) -> str:
        each = ", ".join(f"{number:g} {name}" for name, number in self.resources.items())
        nodes = self.nodes()
        found = ", ".join(f"{node.host}: capacity {node.slots}, {node.free} free" for node in nodes) or "no node"
        without = f"; excluded after failures: {', '.join(excluded)}" if excluded else ""
        leaving = f"; leaving: {', '.join(self._hosts.get(one, one) for one in sorted(self.leaving))}"
        silent = f"; no answer from: {', '.join(sorted(self._hosts.get(one, one) for one in self._silent))}"
        return (
            f"{count(policy.min_workers, 'worker')} with {each} each could not be placed within {waited_s:.0f} s. "
            f"The Ray cluster has {found}{without}{leaving if self.leaving else ''}"
            f"{silent if self._silent else ''}"
        )


def node_answers(node_id: str) -> bool:
    """Whether a node starts a process in ANSWER_S."""
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
    """A task that shows that a node runs tasks."""

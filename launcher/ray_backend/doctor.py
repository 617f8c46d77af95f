"""The doctor on a Ray cluster: one task on every node that is alive, pinned there by the node's id."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launcher.checks.children import Answer
from launcher.checks.cluster import cluster_findings
from launcher.checks.finding import Finding, failed
from launcher.checks.hosts import Call, Host, unique_names
from launcher.checks.tasks import run_task
from launcher.config.schema import RunConfig
from launcher.formatting import printable_lines
from launcher.ray_backend import environment as ray_environment


def ray_findings(
    config: RunConfig | None, seconds: float, *, quick: bool = False, profile: Mapping[str, str] | None = None
) -> list[Finding]:
    """The findings on all nodes of the Ray cluster that this process is connected to, or that RAY_ADDRESS names."""
    joined = not ray.is_initialized()
    if joined:
        ray_environment.set_up()
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError) as error:
            problem = f"{os.environ['RAY_ADDRESS']}: {printable_lines(error)[0]}"
            return [failed("Ray cluster", problem, "start it (ray start), and give this host its token and address")]
    try:
        return cluster_findings(RayHosts(config), config, seconds, quick=quick, profile=profile)
    finally:
        if joined:
            ray.shutdown()


class RayHosts:
    """`Hosts` that are the live nodes of a Ray cluster. A task takes no CPU, so that a busy node answers too."""

    def __init__(self, config: RunConfig | None) -> None:
        nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
        names = unique_names(
            [node["NodeManagerHostname"] for node in nodes], [f" ({node['NodeID'][:8]})" for node in nodes]
        )
        each = 1 if config is None else config.resources.cpus_per_worker
        self._ids = {name: node["NodeID"] for name, node in zip(names, nodes, strict=True)}
        self.hosts: Mapping[str, Host] = {
            name: _host(node, cpus_per_worker=each) for name, node in zip(names, nodes, strict=True)
        }

    def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Answer | str]:
        """See `Hosts.run`."""
        deadline = time.monotonic() + seconds
        asked = {}
        for host, (task, arguments) in calls.items():
            pinned = NodeAffinitySchedulingStrategy(self._ids[host], soft=False)
            asked[host] = _perform.options(scheduling_strategy=pinned).remote(task, dict(arguments))
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
        answers: dict[str, Answer | str] = {}
        for host, reference in asked.items():
            try:
                answers[host] = ray.get(reference, timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except ray.exceptions.GetTimeoutError:
                ray.cancel(reference, force=True)
                answers[host] = f"no answer within {seconds:.3g} s"
            except ray.exceptions.RayError as error:
                answers[host] = f"{type(error).__name__}: {printable_lines(error)[-1]}"
        return answers


def _host(node: Mapping[str, Any], cpus_per_worker: int) -> Host:
    gpus, cpus = (int(node["Resources"].get(kind, 0)) for kind in ("GPU", "CPU"))
    return Host(node["NodeManagerAddress"], workers=cpus // cpus_per_worker, gpus=gpus, cpus=cpus)


_perform: Any = ray.remote(num_cpus=0, max_retries=0)(run_task)

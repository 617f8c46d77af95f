"""Worker processes of Ray that have imported PyTorch and the project before Ray Train places a worker in them.

Ray starts the process of an actor when it places the actor, unless the node has an idle process with the same runtime
environment in which nothing has run yet. Ray has no call for starting such a process. So an actor is created here on
each node, and killed at once: Ray keeps its process, which has begun to start, and a hook of the runtime environment
makes the process import what a worker needs. docs/decisions/0007-starts-through-ray.md has the details.

Processes are started twice: when the driver has connected, for the first attempt, and when an attempt trains, for the
next one. All of it is optional: without an idle process, Ray starts the worker's as ever, and what fails here is only
logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launcher.ray_backend.environment import MEMORY_SHARE, SPARE_BYTES

log = logging.getLogger(__name__)

# Imported early: what a worker imports until its first step. Nothing of it may initialise a GPU: Ray decides only later
# which GPU the worker sees.
EARLY = (
    "launcher.worker.train",
    "launcher.ray_backend.worker",
    "launcher.ray_backend.beside",
    "launcher.ray_backend.process_group",
    "ray.train.torch.config",
    "ray.train.v2._internal.execution.worker_group.worker",
    "torch._dynamo",  # DistributedDataParallel and torch's optimizers import it when they are made
)
_HOOK = "worker_process_setup_hook"  # key of a runtime environment
_MARK = "LAUNCHER_IMPORTS_EARLY"  # environment variable of the processes in which the hook imports
# The process has begun to start by then, and is not ready yet: it takes longer to connect to Ray. Killed earlier or
# later, an actor leaves no process.
KILL_AFTER_S = 0.2


class Node(Protocol):
    """A node that can hold workers."""

    @property
    def node_id(self) -> str:
        """Ray's id."""

    @property
    def slots(self) -> int:
        """Workers that it can hold."""

    @property
    def memory_bytes(self) -> float:
        """Memory that Ray counts on it."""


def job_runtime_env(cpus_per_worker: int, modules: Sequence[str] = EARLY) -> dict[str, Any]:
    """The `runtime_env` of `ray.init`: a hook that imports `modules` in processes whose runtime environment says so."""
    return {_HOOK: _importing(tuple(modules), cpus_per_worker)}


def worker_runtime_env() -> dict[str, Any]:
    """The runtime environment of the processes that import early."""
    return {"env_vars": {_MARK: "1"}}


def are_possible() -> bool:
    """Whether Ray was connected with `job_runtime_env`, or the job has a hook of its own.

    Ray reuses a process only where the text of the runtime environment is the same, and composes that text differently
    for a job without a runtime environment.
    """
    return ray.is_initialized() and _HOOK in ray.get_runtime_context().runtime_env


def start(workers: Mapping[str, int]) -> None:
    """Start a process for each worker; `workers` has their number by node id. Takes a fraction of a second.

    Never raises: a version of Ray may lack what is used here.
    """
    try:
        _start(workers)
    except Exception as error:
        log.warning("no idle processes are started: %s: %s", type(error).__name__, error)


def _start(workers: Mapping[str, int]) -> None:
    environment = {"env_vars": {**_from_ray_train(), **worker_runtime_env()["env_vars"]}}
    spare = ray.remote(num_cpus=0, max_restarts=0, runtime_env=environment)(_Nothing)
    actors = [
        spare.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id, number in workers.items()
        for _ in range(number)
    ]
    time.sleep(KILL_AFTER_S)
    for actor in actors:
        ray.kill(actor)


def for_first_attempt(nodes: Sequence[Node], workers: int) -> dict[str, int]:
    """How many workers a first attempt will have on each node: Ray fills one node after the other."""
    found: dict[str, int] = {}
    for node in sorted(nodes, key=lambda node: -node.slots):
        found[node.node_id] = min(node.slots, workers - sum(found.values()))
    return found


def for_next_attempt(nodes: Sequence[Node], workers: Mapping[str, int], most: int | None) -> dict[str, int]:
    """How many idle processes to keep on each node, where `workers` run now.

    As many as workers, since Ray Train replaces all of them after a failure: at most `most` (`faults.warm_spares`), or
    without it if they fit into MEMORY_SHARE of the node's memory.
    """
    found = {}
    for node in nodes:
        number = workers.get(node.node_id, 0)
        fits = int(MEMORY_SHARE * node.memory_bytes // SPARE_BYTES)
        if number:
            found[node.node_id] = min(number, most) if most is not None else number if number <= fits else 0
    return found


class _Nothing:
    """An actor that is killed before it starts."""


def _from_ray_train() -> dict[str, str]:
    """The environment variables that Ray Train gives its workers: processes with other ones are not reused."""
    from ray.train.v2._internal.constants import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
        get_env_vars_to_propagate,
    )

    default = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return {**default, **get_env_vars_to_propagate()}


def _importing(modules: tuple[str, ...], num_threads: int) -> Callable[[], None]:
    """A hook that imports `modules`; libraries that read OMP_NUM_THREADS when they are loaded find `num_threads`.

    It is sent by value, since the node may have another version of this project than the driver, or none, until Ray has
    set sys.path; and it never raises, since Ray would end the process.
    """
    mark = _MARK

    def hook() -> None:
        import contextlib
        import importlib
        import os

        if mark not in os.environ:
            return
        with contextlib.suppress(Exception):
            from ray._raylet import maybe_initialize_job_config  # type: ignore[attr-defined] # compiled

            maybe_initialize_job_config()  # sets sys.path as the driver has it
            # Ray sets it to the CPUs of the actor, too late for what is imported here.
            os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
            # torch then counts GPUs without initialising CUDA, if a module asks for them when it is imported.
            os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
            for name in modules:
                importlib.import_module(name)

    return hook

"""What a run requires of one host, taken from its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.schema import RunConfig, resolve_place
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.schema import ModelRecipe


@dataclass(frozen=True)
class HostRequirements:
    """What a run requires of one host. The defaults are those of no run."""

    workers: int = 0  # on this host
    gpus: int = 0  # on this host
    cpus: int = 0  # on this host
    nodes: int = 1  # of the whole run
    ray: bool = False  # the run uses Ray
    supervised: bool = False  # the run starts several workers on this host itself, which need no fixed port
    joins_a_cluster: bool = False  # the run uses a Ray cluster that is running already
    run: RunDirectory | None = None
    keep: int = 3  # checkpoints
    model: ModelRecipe | None = None

    def on_host(self, workers: int, gpus: int, cpus: int) -> HostRequirements:
        """The same run on a host with these numbers of workers, GPUs and CPUs."""
        return replace(self, workers=workers, gpus=gpus, cpus=cpus)


def requirements_of(config: RunConfig | None, environment: Mapping[str, str] = os.environ) -> HostRequirements:
    """What `config` requires of this host.

    Under torchrun, LOCAL_WORLD_SIZE is the number of workers, else `resources.local_workers` if it is set. The driver's
    host needs no workers where the run joins a Ray cluster.
    """
    if config is None:
        return HostRequirements()
    ray = resolve_place(config.place) == "ray"
    joins = ray and bool(environment.get("RAY_ADDRESS"))
    workers = 0 if joins else config.workers.most // config.cluster.nodes
    supervised = False
    if not ray and environment.get("LOCAL_WORLD_SIZE", "").isdecimal():
        workers = int(environment["LOCAL_WORLD_SIZE"])
    elif not ray and config.resources.local_workers > 1:
        workers, supervised = config.resources.local_workers, True
    return HostRequirements(
        workers=workers,
        gpus=workers * config.resources.gpus_per_worker,
        cpus=workers * config.resources.cpus_per_worker,
        nodes=config.cluster.nodes,
        ray=ray,
        supervised=supervised,
        joins_a_cluster=joins,
        run=RunDirectory(Path(config.storage), config.name),
        keep=config.checkpoint.keep,
        model=config.model,
    )

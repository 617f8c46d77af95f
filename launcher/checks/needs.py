"""What a run asks of one host, read from its config once: the checks see numbers and paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.schema import RunConfig, place_of
from launcher.run.directory import RunDirectory


@dataclass(frozen=True)
class Needs:
    """What one host must offer. Without a config: nothing but to be sound."""

    workers: int = 0  # on this host
    gpus: int = 0  # on this host
    cpus: int = 0  # on this host
    nodes: int = 1  # in the whole run
    ray: bool = False  # the run goes through Ray
    joins_a_cluster: bool = False  # that was started before; else the run starts its own, or needs none
    storage: Path | None = None
    run: RunDirectory | None = None
    keep: int = 3  # checkpoints
    model: str = ""  # its name

    def on_host(self, workers: int, gpus: int, cpus: int) -> Needs:
        """The same run, on a host that is known to get this much of it."""
        return replace(self, workers=workers, gpus=gpus, cpus=cpus)


def needs_of(config: RunConfig | None, environment: Mapping[str, str] = os.environ) -> Needs:
    """What `config` asks of the host that this process is on.

    torchrun's own number of processes a host counts where it is there. A run that joins a Ray cluster asks nothing of
    the driver's host but to reach the cluster and the storage.
    """
    if config is None:
        return Needs()
    ray = place_of(config) == "ray"
    joins = ray and bool(environment.get("RAY_ADDRESS"))
    workers = 0 if joins else config.workers.most // config.cluster.nodes
    if not ray and "LOCAL_WORLD_SIZE" in environment:
        workers = int(environment["LOCAL_WORLD_SIZE"])
    return Needs(
        workers=workers,
        gpus=workers * config.resources.gpus_per_worker,
        cpus=workers * config.resources.cpus_per_worker,
        nodes=config.cluster.nodes,
        ray=ray,
        joins_a_cluster=joins,
        storage=Path(config.storage),
        run=RunDirectory(Path(config.storage), config.name),
        keep=config.checkpoint.keep,
        model=config.model.name,
    )

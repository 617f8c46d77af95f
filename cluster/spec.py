"""What a run needs of a place, whatever the place is. Made by the launcher from a run config; plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of several runs of the same config, as a job array starts them: another seed, another learning rate.

    Each variant needs a run directory of its own, so `overrides` holds a `name=`.
    """

    name: str
    overrides: tuple[str, ...]  # key=value, as on the command line


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run asks for. Counts are at least 1 where nothing else is said; times are in seconds.

    `config` is the whole resolved config as YAML: its paths are absolute, so it can be read from any folder.
    """

    name: str  # of the run directory, storage/name
    config: str
    storage: str  # absolute; a folder that every node sees
    data_root: str | None = None  # absolute; None where the data source has no folder
    overrides: tuple[str, ...] = ()  # key=value, on top of `config`
    variants: tuple[Variant, ...] = ()  # empty: one run
    least_workers: int = 1  # below `most_workers` where the run is elastic
    most_workers: int = 1
    nodes: int = 1  # divides most_workers
    gpus_per_worker: int = 0  # 0 or 1
    cpus_per_worker: int = 1
    walltime_s: int | None = None
    max_failures: int = 3  # attempts that may fail within one job
    max_requeues: int = 20  # lives of the job after the first, whatever ended them
    start_timeout_s: int = 120  # for the machines to be there, once the job has begun
    notice_s: int = 60  # what a save and an orderly end need at most

    @property
    def workers_per_node(self) -> int:
        """Workers on a node when the run is at its largest."""
        return self.most_workers // self.nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs on a node when the run is at its largest."""
        return self.workers_per_node * self.gpus_per_worker

    @property
    def cpus_per_node(self) -> int:
        """CPUs on a node when the run is at its largest, for the workers alone."""
        return self.workers_per_node * self.cpus_per_worker

    @property
    def is_elastic(self) -> bool:
        """Whether the run goes on with fewer workers than its largest number."""
        return self.least_workers < self.most_workers

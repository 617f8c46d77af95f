"""What a run needs of a scheduler. The launcher creates it from a run config."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run of a job array: the same config with another seed or learning rate.

    Each variant needs its own run directory, so `overrides` contains a `name=`.
    """

    name: str
    overrides: tuple[str, ...]  # key=value, as on the command line


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The needs of a run. Counts are at least 1 unless noted; times are in seconds.

    `config` is the resolved config as YAML. Its paths are absolute, so it can be read from any folder.
    """

    name: str  # the run directory is storage/name
    config: str
    storage: str  # absolute path of a folder that all nodes share
    data_root: str | None = None  # absolute path; None if the data source has no folder
    other_inputs: dict[str, str] = field(default_factory=dict)  # other absolute paths that workers read, by config key
    overrides: tuple[str, ...] = ()  # key=value, applied to `config`
    variants: tuple[Variant, ...] = ()  # empty: one run
    least_workers: int = 1  # less than `most_workers` if the run is elastic
    most_workers: int = 1
    nodes: int = 1  # divides most_workers
    gpus_per_worker: int = 0  # 0 or 1
    cpus_per_worker: int = 1
    walltime_s: int | None = None
    max_failures: int = 3  # failed attempts within one job
    max_requeues: int = 20  # restarts of the job; on SLURM, those after a fault or without progress
    start_timeout_s: int = 120  # until all nodes are available, once the job has started
    notice_s: int = 60  # at most needed for a save and a clean exit
    evaluates_beside: bool = False  # training, with resources of one more worker if there are any

    @property
    def workers_per_node(self) -> int:
        """Workers per node at the largest number of workers."""
        return self.most_workers // self.nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs per node at the largest number of workers."""
        return self.workers_per_node * self.gpus_per_worker

    @property
    def cpus_per_node(self) -> int:
        """CPUs per node at the largest number of workers."""
        return self.workers_per_node * self.cpus_per_worker

    @property
    def is_elastic(self) -> bool:
        """Whether the run continues with fewer workers."""
        return self.least_workers < self.most_workers

    def doubts(self, spare_nodes: int) -> list[Problem]:
        """What a job does not request although the run can use it: nodes have resources for their workers only."""
        if not self.evaluates_beside or spare_nodes:
            return []
        cpus = "a CPU" if self.cpus_per_worker == 1 else f"{self.cpus_per_worker} CPUs"
        needed = "a GPU" if self.gpus_per_worker else cpus
        found = f"found true, which needs {needed} besides those of the workers; the job requests none, so that the"
        allowed = "spare_nodes: 1 in the profile, whose node Ray uses for that; or false"
        return [Problem("", "evaluate.beside", f"{found} workers evaluate in turn with training", allowed)]

"""A recipe, and where and how it runs: the whole of a config file, frozen, with its defaults filled in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import resnet_dist.rules
from resnet_dist.durations import Duration
from resnet_dist.errors import RecipeError
from resnet_dist.recipe import Recipe

SCHEMA_VERSION = 1

# A folder's name on every file system, in a SLURM job name and in a URL; 100 leaves room for what others append to it.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WALLTIME = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker gets. A worker has one GPU, or none and computes on CPUs."""

    gpus_per_worker: int = 0  # 0 or 1
    cpus_per_worker: int = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved; its end, and a request to stop, always save."""

    every: Duration = field(default_factory=lambda: Duration(Fraction(1), "epochs"))
    keep: int = 3  # newest checkpoints that stay on the disk


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What the run bears before it is given up."""

    max_failures: int = 3  # attempts that may fail; being preempted is not a failure


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a scheduler is asked for."""

    nodes: int = 1
    walltime: str | None = None  # HH:MM:SS


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How much is written down."""

    every_steps: int = 10  # a "train" line of metrics.jsonl
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """A run: its recipe, its name and place, and the machines it asks for.

    `storage`, `data.root` and `model.weights` are absolute paths once `launcher.config` has read them.
    """

    schema: Literal[1]
    name: str  # of the run directory, storage/name
    storage: str
    place: Literal["auto", "ray", "local"] = "auto"
    workers: int = 1
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: Faults = field(default_factory=Faults)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def recipe(self) -> Recipe:
        """What is trained, without where: the part that the data plane sees and that a checkpoint belongs to."""
        return Recipe(**{part.name: getattr(self, part.name) for part in dataclasses.fields(Recipe)})


def problems(config: RunConfig, num_samples: int | None = None) -> list[RecipeError]:
    """Everything that is wrong with a run: its own rules, and the recipe's on `config.workers` workers.

    `num_samples` is the training split's size where it is known; see `resnet_dist.rules.problems`.
    """
    return [*_run(config), *_machines(config), *resnet_dist.rules.problems(config, config.workers, num_samples)]


def _run(config: RunConfig) -> Iterator[RecipeError]:
    if _SAFE_NAME.fullmatch(config.name) is None:
        yield RecipeError(
            "name", f'found "{config.name}"', "letters, digits, . _ and -, a letter or digit first, 100 at most"
        )
    every = config.checkpoint.every
    if every.count <= 0:
        yield RecipeError("checkpoint.every", f"found {every}", "a duration above 0")
    yield from _at_least(1, "checkpoint.keep", config.checkpoint.keep)
    yield from _at_least(0, "faults.max_failures", config.faults.max_failures)
    yield from _at_least(1, "log.every_steps", config.log.every_steps)


def _machines(config: RunConfig) -> Iterator[RecipeError]:
    workers, nodes, resources = config.workers, config.cluster.nodes, config.resources
    yield from _at_least(1, "workers", workers)
    yield from _at_least(1, "cluster.nodes", nodes)
    yield from _at_least(1, "resources.cpus_per_worker", resources.cpus_per_worker)
    if resources.gpus_per_worker not in (0, 1):
        yield RecipeError(
            "resources.gpus_per_worker",
            f"found {resources.gpus_per_worker}",
            "0 or 1: a worker is one process with one GPU; for more GPUs raise workers",
        )
    if workers >= 1 and nodes >= 1 and workers % nodes:
        whole = sorted({max(1, workers // nodes) * nodes, (workers // nodes + 1) * nodes})
        yield RecipeError(
            "workers",
            f"found {workers}, which cluster.nodes {nodes} does not divide",
            f"the same number of workers on every node: nearest {' or '.join(map(str, whole))}",
        )
    if config.precision == "tf32" and resources.gpus_per_worker == 0:
        yield RecipeError(
            "precision",
            "found tf32, which would do nothing on a CPU (resources.gpus_per_worker is 0)",
            "float32, bfloat16, float64; or resources.gpus_per_worker 1",
        )
    walltime = config.cluster.walltime
    match = None if walltime is None else _WALLTIME.fullmatch(walltime)
    if walltime is not None and (match is None or not any(int(part) for part in match.groups())):
        yield RecipeError("cluster.walltime", f'found "{walltime}"', 'hours:minutes:seconds, quoted: "04:00:00"')


def _at_least(low: int, key: str, value: int) -> Iterator[RecipeError]:
    if value < low:
        yield RecipeError(key, f"found {value}", f"a whole number from {low} up")

"""A run config: a recipe, and where and how it runs. Its fields are the keys of a config file."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from launcher.errors import ConfigError, Problem, UsageError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import Recipe

SCHEMA_VERSION = 1

Place = Literal["auto", "ray", "local"]

LARGEST_GROUP = 100_000  # workers: `plan` and a step's boundaries take time and memory for each

_STEPS = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")

# Workers in JSON schema: what `Workers.parse` takes as text.
RANGE_PATTERN = r"^[0-9]{1,9}\.\.[0-9]{1,9}$"


@dataclass(frozen=True)
class Workers:
    """The number of workers: fixed, or a range within which an elastic run shrinks and grows.

    >>> Workers.parse("2..4"), str(Workers(2, 4)), Workers.parse(3).elastic
    (Workers(least=2, most=4), '2..4', False)
    """

    least: int
    most: int

    @classmethod
    def parse(cls, value: object) -> Workers:
        """From `4` or `"2..4"`. Raises ValueError for anything else."""
        if isinstance(value, str) and re.fullmatch(RANGE_PATTERN, value):
            least, most = value.split("..")
            return cls(int(least), int(most))
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value, value)
        raise ValueError(f"{value!r} is neither a number of workers nor a range such as 2..4")

    @property
    def elastic(self) -> bool:
        """Whether the number may change during the run."""
        return self.least != self.most

    def plain(self) -> int | str:
        """The value in a config file."""
        return str(self) if self.elastic else self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else str(self.most)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of one worker. A worker has one GPU, or computes on CPUs."""

    gpus_per_worker: int = 0  # 0 or 1
    cpus_per_worker: int = 1  # CPU cores
    local_workers: int = 1  # workers under place local, without torchrun: processes on this machine


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved and which are kept. The end of a run and a request to stop always save one."""

    every: Duration = field(default_factory=lambda: Duration(Fraction(1), "epochs"))  # interval between checkpoints
    keep: int = 3  # number of newest checkpoints to keep
    keep_best: int = 0  # number of checkpoints with the highest top-1 to keep in addition
    keep_every: Duration | None = None  # interval of checkpoints that are never deleted, e.g. 10 epochs
    mirror: str | None = None  # object store that gets a copy of each checkpoint, e.g. s3://bucket/folder
    max_failures: int = 3  # consecutive saves that may fail (a full disk) before the run fails


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Retry limits and timeouts."""

    max_failures: int = 3  # failures without a new checkpoint in between; a preemption is not a failure
    hang_timeout_s: float = 600.0  # seconds without progress before a worker counts as hung; tripled in a start or save
    start_timeout_s: float = 120.0  # seconds to wait until nodes are available and workers are placed
    on_nonfinite: Literal["stop", "skip"] = "stop"  # skip: go back one checkpoint and leave those samples out
    max_skips: int = 3  # on_nonfinite: skip: how often
    max_node_failures: int = 2  # failures of one node before later attempts exclude it
    preflight: bool = True  # check hosts, GPUs and an all-reduce before each attempt
    warm_spares: int | None = None  # idle processes of a node for lost workers; default: 1 (Ray: all) if memory allows


@dataclass(frozen=True, kw_only=True)
class Notify:
    """Notifications about the end of a run, failures, preemptions and missing progress."""

    command: str | None = None  # program to run, without a shell; it reads the event as JSON from standard input
    webhook: str | None = None  # http(s) address to post the event to, as JSON; without credentials
    webhook_env: str | None = None  # environment variable of the driver that holds the address, in place of webhook
    no_progress_minutes: float | None = None  # minutes without a new step until a notification


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """Preemption notices, in addition to signals and Ray's drain."""

    notice_file: str | None = None  # file whose existence on a worker's node is a preemption notice
    notice_s: float | None = None  # seconds between the notice and the end; `plan` compares it with the time of a save


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What to request from a scheduler."""

    nodes: int = 1  # number of nodes; divides workers
    walltime: str | None = None  # time limit of a job, HH:MM:SS
    max_requeues: int = 20  # restarts of a job by its scheduler; on SLURM only those after a fault or without progress


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged."""

    every_steps: int = 10  # steps between two "train" records in metrics.jsonl
    layers_every_steps: int | None = None  # steps between two "layers" records: norms and trust ratios of each layer
    tensorboard: bool = True  # write TensorBoard event files
    tensorboard_images: int = 0  # training images of the first step, with their crops, to write to TensorBoard
    wandb: str | None = None  # project in Weights & Biases to log to; WANDB_* variables give account and mode
    prometheus: str | None = None  # file NAME.prom with the newest numbers, for Prometheus's node exporter
    sinks: tuple[str, ...] = ()  # your own: package.module:function, called on rank 0, returns a sink of the records
    profile: str | None = None  # FIRST:LAST steps to trace with torch's profiler, e.g. "10:20" (--profile 10:20)

    def profiled_steps(self) -> tuple[int, int] | None:
        """The first and the last step to profile; None if there are none or the range is invalid."""
        match = None if self.profile is None else _STEPS.fullmatch(self.profile)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            return None
        return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """A run: its recipe, its name, where it runs and on which resources.

    `launcher.config.load` makes all paths absolute.
    """

    schema: Literal[1]  # version of the config format
    name: str  # name of the run
    storage: str  # folder of run directories that all nodes share; the run directory is storage/name
    place: Place = "auto"  # local: torchrun's, or `resources.local_workers` processes; auto: torchrun, Ray, local
    workers: Workers = Workers(1, 1)  # number of training processes, or a range A..B for an elastic run
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: Faults = field(default_factory=Faults)
    notify: Notify = field(default_factory=Notify)
    preemption: Preemption = field(default_factory=Preemption)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def recipe(self) -> Recipe:
        """The recipe: the part that the data plane gets and a checkpoint records."""
        return Recipe(**{part.name: getattr(self, part.name) for part in dataclasses.fields(Recipe)})


def mirror_address(config: RunConfig) -> str | None:
    """The address of this run's checkpoints in the mirror; None without a mirror."""
    mirror = config.checkpoint.mirror
    return None if mirror is None else f"{mirror.rstrip('/')}/{config.name}/checkpoints"


def with_micro_batches(config: RunConfig, count: int | None) -> RunConfig:
    """The config with `count` micro-batches (None: 1) in place of `auto`, and batch norm's span settled before."""
    if config.batch.num_micro_batches != "auto":
        return config
    config = settled(config)
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, num_micro_batches=count or 1))


def resolve_place(place: Place) -> Literal["ray", "local"]:
    """`place` with `auto` resolved: local under torchrun, else ray if it is installed, else local.

    Raises UsageError for `ray` if it is not installed.
    """
    if place != "auto":
        if place == "ray" and not has_ray():
            raise UsageError("place: ray needs Ray, which is not installed here: pip install 'resnet-launcher[ray]'")
        return place
    if under_torchrun():
        return "local"
    return "ray" if has_ray() else "local"


def under_torchrun() -> bool:
    """Whether the environment describes a process group, as torchrun sets it up."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@dataclass(frozen=True)
class Ranks:
    """The place of a process in its group, and in the part of the group on its host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def ranks() -> Ranks:
    """The ranks that the environment gives this process under torchrun; else those of the only process.

    Raises ConfigError, with all problems, if the variables of a process group are not numbers or contradict each other.
    """
    if not under_torchrun():
        return Ranks()
    problems: list[Problem] = []

    def number(name: str, least: int, most: int, default: str = "") -> int:
        text = os.environ.get(name, default)
        if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
            return int(text)
        allowed = f"a whole number from {least} to {most}, as torchrun sets it; or unset RANK to train without torchrun"
        problems.append(Problem("environment", name, f'found "{text}"', allowed))
        return least

    world_size = number("WORLD_SIZE", 1, LARGEST_GROUP)
    rank = number("RANK", 0, world_size - 1)
    local_world_size = number("LOCAL_WORLD_SIZE", 1, world_size, "1")
    most = local_world_size if "LOCAL_WORLD_SIZE" in os.environ else world_size
    local_rank = number("LOCAL_RANK", 0, most - 1, "0")
    number("MASTER_PORT", 0, 65_535)
    if problems:
        raise ConfigError(problems)
    return Ranks(rank, world_size, local_rank, local_world_size)


def leads() -> bool:
    """Whether this process prints and records for the run: rank 0, or the only process. Raises as `ranks` does."""
    return ranks().rank == 0


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None

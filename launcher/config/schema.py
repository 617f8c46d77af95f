"""A recipe, and where and how it runs: the whole of a config file, frozen, with its defaults filled in."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from launcher.errors import UsageError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import Recipe

SCHEMA_VERSION = 1

_STEPS = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")

# Workers in JSON schema: what `Workers.parse` takes as text.
RANGE_PATTERN = r"^[0-9]{1,9}\.\.[0-9]{1,9}$"


@dataclass(frozen=True)
class Workers:
    """How many workers a run has: a number, or a range that it shrinks and grows within.

    >>> Workers.parse("2..4"), str(Workers(2, 4)), Workers.parse(3).elastic
    (Workers(least=2, most=4), '2..4', False)
    """

    least: int
    most: int

    @classmethod
    def parse(cls, value: int | str) -> Workers:
        """`4` or `"2..4"`; ValueError for anything else."""
        if isinstance(value, str) and re.fullmatch(RANGE_PATTERN, value):
            least, most = value.split("..")
            return cls(int(least), int(most))
        if type(value) is int:
            return cls(value, value)
        raise ValueError(f"{value!r} is neither a number of workers nor a range such as 2..4")

    @property
    def elastic(self) -> bool:
        """Whether the number may change while the run goes on."""
        return self.least != self.most

    def plain(self) -> int | str:
        """As a config file has it."""
        return str(self) if self.elastic else self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else str(self.most)


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
    keep_best: int = 0  # and this many of those with the highest top-1
    keep_every: Duration | None = None  # and one every so often, for ever
    mirror: str | None = None  # an address of an object store (s3://bucket/folder) that gets a copy of each
    max_failures: int = 3  # saves in a row that may fail (a full disk) before the run does


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What the run bears before it is given up."""

    max_failures: int = 3  # in a row without a later checkpoint; being preempted is not a failure
    hang_timeout_s: float = 600.0  # without a sign of progress from a worker; a start or a save may take 3 times that
    start_timeout_s: float = 120.0  # for the machines to be there and the workers to be placed
    on_nonfinite: Literal["stop", "skip"] = "stop"  # skip: one checkpoint back, and around those samples
    max_skips: int = 3
    node_strikes: int = 2  # faults of one node before it is left out
    preflight: bool = True  # every attempt begins with a short look at its hosts, its GPUs and an all-reduce


@dataclass(frozen=True, kw_only=True)
class Notify:
    """Who is told of the end, a failure, a preemption, and of a run that makes no progress."""

    command: str | None = None  # run without a shell; the event comes as JSON on its standard input
    webhook: str | None = None  # an http(s) address without a secret in it, that the event is posted to, as JSON
    webhook_env: str | None = None  # instead: the environment variable of the driver that holds such an address
    no_progress_minutes: float | None = None  # without a new step


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """How a node is told that it will go away, beside signals and Ray's drain."""

    notice_file: str | None = None  # its existence on a worker's node is the notice
    notice_s: float | None = None  # how long before the end the notice comes; `plan` holds it against a save's time


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
    profile: str | None = None  # FIRST:LAST steps to look into with torch's profiler, e.g. "10:20" (--profile 10:20)

    def profiled_steps(self) -> tuple[int, int] | None:
        """The first and the last step to profile; None where there is none, or what is given is no range."""
        match = None if self.profile is None else _STEPS.fullmatch(self.profile)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            return None
        return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """A run: its recipe, its name and place, and the machines it asks for.

    `storage`, `data.root` and `model.weights` are absolute paths once `launcher.config.load` has read them.
    """

    schema: Literal[1]
    name: str  # of the run directory, storage/name
    storage: str
    place: Literal["auto", "ray", "local"] = "auto"
    workers: Workers = Workers(1, 1)
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: Faults = field(default_factory=Faults)
    notify: Notify = field(default_factory=Notify)
    preemption: Preemption = field(default_factory=Preemption)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def recipe(self) -> Recipe:
        """What is trained, without where: the part that the data plane sees and that a checkpoint belongs to."""
        return Recipe(**{part.name: getattr(self, part.name) for part in dataclasses.fields(Recipe)})


def mirror_address(config: RunConfig) -> str | None:
    """Where this run's checkpoints are copied to, a folder of its own in the mirror; None without one."""
    mirror = config.checkpoint.mirror
    return None if mirror is None else f"{mirror.rstrip('/')}/{config.name}/checkpoints"


def with_micro_batches(config: RunConfig, count: int | None) -> RunConfig:
    """The config with `count` micro-batches (None: 1), where it leaves their number to us; batch norm's span stays."""
    if config.batch.num_micro_batches != "auto":
        return config
    config = settled(config)
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, num_micro_batches=count or 1))


def place_of(config: RunConfig) -> str:
    """Where the run is carried out: torchrun's processes, Ray where it is installed, or this machine's own process."""
    if config.place != "auto":
        if config.place == "ray" and not has_ray():
            raise UsageError("place: ray needs Ray, which is not installed here: pip install 'resnet-launcher[ray]'")
        return config.place
    if under_torchrun():
        return "local"
    return "ray" if has_ray() else "local"


def under_torchrun() -> bool:
    """Whether this process is one of a group that its environment describes."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def leads() -> bool:
    """Whether this process speaks for the run: it is rank 0 of its group, or alone."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None

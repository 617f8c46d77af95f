"""The memory of a worker's step: the estimate, and what earlier runs of the same configuration used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, UsageError
from launcher.planning.history import as_local, finished
from launcher.planning.work import configuration
from launcher.run.directory import RunDirectory
from resnet_dist.data.decoding.choice import uses_dali
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.network_memory import step_bytes
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.metrics_file import metrics_record

TOLERANCE = 0.2  # an estimate that differs by more from a measurement is a warning
_TAIL = 20  # lines of metrics.jsonl in which the last train record is
_MIB = 2**20
_MOST_RUNS = 20  # the newest ones are read


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The bytes of a worker's step by its network: those of its weights, and those of each image of a micro-batch."""

    static: int  # weights, gradients, optimizer state and moving average
    sample: int
    num_samples: int  # in the largest micro-batch of a worker

    @property
    def total(self) -> int:
        """All of them together."""
        return self.static + self.sample * self.num_samples


@dataclass(frozen=True, kw_only=True)
class DaliMemory:
    """The buffers that DALI allocates in advance on a worker, in bytes. torch does not count them as its own."""

    gpu: int
    pinned: int  # of the host; cannot be swapped out
    pipelines: tuple[str, ...]  # what they are for; a worker keeps all of them
    num_threads: int  # of a pipeline


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The memory of rank 0 in an earlier run of the same configuration."""

    run: str
    gpu: int | None  # bytes: the most that torch has used of the GPU
    host: int | None  # bytes of the whole process, with torch and the images that were decoded ahead


def estimate(config: RunConfig) -> Estimate | None:
    """The estimate for the worker with the most images; None for a user's model."""
    found = step_bytes(config.recipe())
    if found is None:
        return None
    layout = BatchLayout.of(config, config.workers.most)
    num_samples = max(len(layout.worker_micro_batch(0, rank)) for rank in (0, config.workers.most - 1))
    return Estimate(static=found[0], sample=found[1], num_samples=num_samples)


def of_dali(config: RunConfig) -> DaliMemory | None:
    """The buffers of DALI's decoders; None where DALI decodes nothing on a GPU.

    Each thread of a pipeline has one buffer on the GPU and two on the host.
    """
    data, num_threads = config.data, config.resources.cpus_per_worker
    if not config.resources.gpus_per_worker or data.source == "synthetic" or not uses_dali(data, on_gpu=True):
        return None
    # the batches of precise batch norm are those of training, which goes on after the evaluation
    pipelines = ("training", "evaluation", *(["precise batch norm"] if config.evaluate.precise_batch_norm else []))
    all_threads = len(pipelines) * num_threads
    return DaliMemory(
        gpu=all_threads * data.dali.device_padding_mib * _MIB,
        pinned=all_threads * 2 * data.dali.host_padding_mib * _MIB,
        pipelines=pipelines,
        num_threads=num_threads,
    )


def measured(config: RunConfig) -> Measured | None:
    """What this run has used, or else the newest finished run of the same configuration; None without a record.

    With place local, `config` has the workers of a start (`launcher.planning.history.as_local`).
    """
    own = RunDirectory(Path(config.storage), config.name)
    key = configuration(config)
    for run in [own, *finished(Path(config.storage))[:_MOST_RUNS]]:
        if _is_of(run, key) and (found := next(_records(run), None)) is not None:
            return found
    return None


def differs(one: Estimate, other: Measured) -> bool:
    """Whether the estimate is off by more than a fifth of what a GPU used. A host's process holds other things."""
    return other.gpu is not None and abs(one.total - other.gpu) > TOLERANCE * other.gpu


def _is_of(run: RunDirectory, key: str) -> bool:
    try:
        config = configs.load(run.config, recorded=True)
        return configuration(as_local(config) if config.place == "local" else config) == key
    except (ConfigError, UsageError):
        return False


def _records(run: RunDirectory) -> Iterator[Measured]:
    """The memory by the last train records, newest first."""
    for record in reversed(json_lines.read_tail(run.metrics, _TAIL, metrics_record)):
        gpu, host = record.get("gpu_memory_bytes"), record.get("memory_bytes")
        if gpu is not None or host is not None:
            yield Measured(run=run.name, gpu=gpu, host=host)

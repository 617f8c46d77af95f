"""Earlier runs as evidence: the work that each did, and the time that it took. Read without torch, newest first."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config import load as configs
from launcher.config.schema import RunConfig, Workers, ranks, under_torchrun
from launcher.errors import ConfigError, UsageError
from launcher.planning.actual import Actual, actual, commands_s, steps_of
from launcher.planning.work import Work, configuration, program, work_of
from launcher.run.directory import RunDirectory, remembered_runs
from launcher.run.environment import devices
from launcher.run.record_types import Attempt
from resnet_dist.errors import StorageError
from resnet_dist.input_files import read_json, record_of
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.metrics_file import metrics_record, read_metrics

log = logging.getLogger(__name__)

_TAIL = 40  # lines of metrics.jsonl in which the last train record is
_LARGEST_METRICS = 50_000_000  # bytes of the metrics of an unfinished run that are read


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images a config names, and how many there are."""

    root: str
    source: str
    num_samples: int  # of the training split, as far as it is trained on
    num_val: int | None


@dataclass(frozen=True, kw_only=True)
class _Names:
    name: str
    model: str
    configuration: str
    program: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Earlier(_Names):
    """A run with its work and its times. Of an unfinished one, both are of its complete steps."""

    images: Images
    work: Work
    times: Actual


def earlier_runs(storage: Path, seconds: float | None = None) -> Iterator[Earlier]:
    """The finished runs of a storage that can be read, newest first.

    `seconds`: the time for runs that have not been remembered, each of which takes 10 ms or more.
    """
    known, began = _remembered(storage), time.monotonic()
    for run in finished(storage):
        before = known.get(run.name)
        if before is not None and before[1] == _finished_ns(run):
            yield before[0]
        elif (seconds is None or time.monotonic() - began < seconds) and (found := earlier_run(run)) is not None:
            yield found


def remember(run: RunDirectory) -> None:
    """Append a finished run to the evidence of its storage, which later starts read fast. Raises nothing."""
    try:
        found = earlier_run(run)
        if found is not None:
            line = {"finished_ns": _finished_ns(run), **dataclasses.asdict(found)}
            json_lines.append(remembered_runs(run.storage), line)
    except OSError as error:
        log.warning("%s: the run is not remembered: %s", remembered_runs(run.storage), error)


def _remembered(storage: Path) -> dict[str, tuple[Earlier, int]]:
    """Runs by name, with the time of their FINISHED; of several lines of a run the newest."""
    try:
        lines = json_lines.read(remembered_runs(storage), _remembered_run)
    except OSError:
        return {}
    return {found.name: (found, finished_ns) for found, finished_ns in lines}


def _remembered_run(content: object) -> tuple[Earlier, int] | None:
    if not isinstance(content, dict) or type(content.get("finished_ns")) is not int:
        return None
    parts = {"images": Images, "work": Work, "times": Actual}
    found = {name: record_of(kind, content.get(name)) for name, kind in parts.items()}
    names = record_of(_Names, content)
    if names is None or None in found.values():
        return None
    whole: dict[str, Any] = {**dataclasses.asdict(names), **found}
    return Earlier(**whole), content["finished_ns"]


def _finished_ns(run: RunDirectory) -> int:
    try:
        return run.finished_file.stat().st_mtime_ns
    except OSError:
        return 0


def finished(storage: Path) -> list[RunDirectory]:
    """The finished runs of a storage, newest first; none if it cannot be listed."""
    found = []
    try:
        with os.scandir(storage) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
    for name in names:
        run = RunDirectory(storage, name)
        try:
            found.append((run.finished_file.stat().st_mtime, name, run))
        except OSError:
            continue
    return [run for *_, run in sorted(found, key=lambda one: one[:2], reverse=True)]


def earlier_run(run: RunDirectory) -> Earlier | None:
    """A finished run as evidence, or an unfinished one with complete steps; None if it has none or cannot be read."""
    try:
        attempts = run.attempts()
        if not attempts:
            return None
        config = as_trained(configs.load(run.config, recorded=True), attempts[-1])
        summary, times = run.summary() or {}, actual(run)
        num_samples = config.data.num_trained() or _num_samples(run, config)
        if num_samples is None or (summary.get("step") or 1) < 1:
            return None
        num_val = _num_val(summary)
        if times is None:
            return _unfinished(run, config, attempts, num_samples)
        work = work_of(config, num_samples, num_val, steps=summary.get("step"))
        return _earlier(run, config, Images(**_named(config), num_samples=num_samples, num_val=num_val), work, times)
    except (ConfigError, UsageError, StorageError, OSError, ValueError):
        return None


def as_trained(config: RunConfig, attempt: Attempt) -> RunConfig:
    """`config` with the place and the number of workers of an attempt: not `auto`, and as torchrun changed it."""
    workers, place = attempt.facts.get("workers", config.workers.most), attempt.facts.get("place")
    place = place if place in ("local", "ray") else config.place
    # The local supervisor's workers are on one machine, whatever the config says: see `as_local`.
    is_here = place == "local" and workers == config.resources.local_workers
    cluster = dataclasses.replace(config.cluster, nodes=1) if is_here else config.cluster
    return dataclasses.replace(config, workers=Workers(workers, workers), place=place, cluster=cluster)


def as_local(config: RunConfig) -> RunConfig:
    """`config` with the workers that it starts without Ray: torchrun's, or `resources.local_workers` on one node."""
    if under_torchrun():
        num, cluster = ranks().world_size, config.cluster
    else:
        num, cluster = config.resources.local_workers, dataclasses.replace(config.cluster, nodes=1)
    return dataclasses.replace(config, workers=Workers(num, num), cluster=cluster)


def _earlier(run: RunDirectory, config: RunConfig, images: Images, work: Work, times: Actual) -> Earlier:
    return Earlier(
        name=run.name,
        model=config.model.name,
        configuration=configuration(config),
        program=program(config),
        device=_device_of(run, config),
        images=images,
        work=work,
        times=times,
    )


def _unfinished(run: RunDirectory, config: RunConfig, attempts: list[Attempt], num_samples: int) -> Earlier | None:
    """The complete steps of a run that is to be resumed."""
    if run.metrics.stat().st_size > _LARGEST_METRICS:
        return None
    records = read_metrics(run.metrics)
    windows = steps_of(records)
    steps = sum(num for num, _ in windows)
    if not steps:
        return None
    evaluated = [record for record in records if record["kind"] == "eval" and record.get("time_s") is not None]
    num_val = _num_val(evaluated[-1]) if evaluated else None
    times = Actual(
        wall_s=commands_s(run, attempts),
        start_s=None,
        training_s=sum(time_s for _, time_s in windows),
        evaluation_s=sum(record["time_s"] for record in evaluated) or None,
        saving_s=None,
    )
    work = work_of(config, num_samples, num_val, steps=steps, evaluations=len(evaluated))
    return _earlier(run, config, Images(**_named(config), num_samples=num_samples, num_val=num_val), work, times)


def _named(config: RunConfig) -> dict[str, str]:
    return {"root": config.data.root, "source": config.data.source}


def same_images(images: Images, config: RunConfig) -> bool:
    """Whether `config` trains on these images, as far as their place tells."""
    return _named(config) == {"root": images.root, "source": images.source} and config.data.subset is None


def _num_val(record: Mapping[str, Any]) -> int | None:
    num: int = (record.get("num_samples") or 0) + (record.get("num_bad") or 0)
    return num or None


def _num_samples(run: RunDirectory, config: RunConfig) -> int | None:
    """The number of training images by the step and epoch of the last train record."""
    for record in reversed(json_lines.read_tail(run.metrics, _TAIL, metrics_record)):
        if record["kind"] == "train" and record.get("epoch"):
            per_epoch: int = round(record["step"] * config.batch.size / record["epoch"])
            return max(per_epoch, 1)
    return None


def _device_of(run: RunDirectory, config: RunConfig) -> str:
    """What rank 0 computed on, as it was recorded; the host for runs of version 0.1."""
    try:
        facts = read_json(run.environment)
    except (OSError, ValueError):
        return ""
    return device_name(facts, on_gpu=config.resources.gpus_per_worker > 0) if isinstance(facts, dict) else ""


def device_here(config: RunConfig) -> str:
    """What a worker on this machine computes on; empty without such a device."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {**devices(), "num_cpus_allowed": allowed}
    return device_name(facts, on_gpu=config.resources.gpus_per_worker > 0)


def device_name(facts: Mapping[str, Any], *, on_gpu: bool) -> str:
    """The device of an environment: the name of the first GPU, or the CPU with its number of cores."""
    if on_gpu:
        gpus = facts.get("gpus")
        return str(gpus[0]) if isinstance(gpus, list) and gpus else ""
    cpu = facts.get("cpu") or facts.get("host") or ""
    return f"{cpu}, {facts.get('num_cpus_allowed')} cores" if cpu else ""

"""What a plan says about memory, disks, and where and how the run is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.commands import plan_disks
from launcher.commands.plan_spans import largest_team
from launcher.commands.plan_text import paragraph, row
from launcher.config.schema import RunConfig, resolve_place
from launcher.formatting import count, in_bytes
from launcher.local.spares import SPARE_BYTES
from launcher.planning import memory
from launcher.planning.images import Images
from launcher.planning.memory import Estimate, Measured
from launcher.planning.preemption import preemption_notice
from launcher.ray_backend import environment as ray_backend
from launcher.run.directory import RunDirectory
from resnet_dist.data.decoding.choice import describe_decoders
from resnet_dist.recipe.batch_layout import WANTED_SPAN, BatchLayout
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import EXPERIMENTAL, EmaRecipe, EngineRecipe


def memory_and_disks(
    config: RunConfig, images: Images, estimate: Estimate | None, measured: Measured | None, images_per_s: float | None
) -> Iterator[str]:
    """The memory of a worker, estimated and measured, and what the disks must deliver."""
    if estimate is None:
        yield from row("memory", f"unknown: a plan does not run {config.model.name}")
    else:
        state = {0: "", 1: " and momentum"}.get(config.optimizer.num_states, " and moments")
        weights = f"weights, gradients{state}" if state else "weights and gradients"
        yield from row(
            "memory",
            f"about {in_bytes(estimate.total)} per worker: {in_bytes(estimate.static)} of {weights},"
            f" {in_bytes(estimate.sample)} for each of {count(estimate.num_samples, 'image')} of a micro-batch",
        )
    if measured is not None:
        yield from row("measured", measured_text(estimate, measured))
    elif estimate is not None:
        yield from row("", "an estimate: no run of this configuration in this storage has recorded its memory")
    yield from _dali(config)
    yield from plan_disks.lines(config.data, images.mean_bytes, images.num_shards, images_per_s)


def _dali(config: RunConfig) -> Iterator[str]:
    found = memory.of_dali(config)
    if found is not None:
        settings = config.data.dali
        yield from row(
            "DALI",
            f"buffers of {in_bytes(found.gpu)} on the GPU and {in_bytes(found.pinned)} of pinned host memory for each"
            f" worker, besides the above: {len(found.pipelines)} pipelines ({', '.join(found.pipelines)}) of"
            f" {count(found.num_threads, 'thread')}, each with {settings.device_padding_mib} MiB and twice"
            f" {settings.host_padding_mib} MiB (data.dali)",
        )


def measured_text(estimate: Estimate | None, measured: Measured) -> str:
    """What an earlier run used, beside the estimate."""
    if measured.gpu is None:
        host = in_bytes(measured.host or 0)
        return f"{host} by the whole process of rank 0 in {measured.run}, with PyTorch itself and decoded images"
    beside = ""
    if estimate is not None:
        difference = estimate.total / measured.gpu - 1 if measured.gpu else 0.0
        beside = f": the estimate is {abs(difference):.0%} {'higher' if difference > 0 else 'lower'}"
    return f"{in_bytes(measured.gpu)} of its GPU by rank 0 in {measured.run}{beside}"


def experimental_warnings(config: RunConfig) -> Iterator[str]:
    """A warning for each speed key that is on and that no GPU has run."""
    if config.resources.gpus_per_worker:
        for name in EXPERIMENTAL:
            if getattr(config.speed, name):
                yield f"speed.{name} is experimental: no GPU has run it here (docs/tried.md)"


def ema_warnings(config: RunConfig, num_samples: int) -> Iterator[str]:
    """A warning if the average spans more steps than the run has, with a decay with which it spans a twentieth."""
    ema, steps = config.ema, config.duration.steps(batch_size=config.batch.size, num_samples=num_samples)
    if ema.decay is None or _averaged_steps(ema) <= steps:
        return
    every = min(ema.every_steps, max(1, steps // 100))
    decay = max(0.5, 1 - 20 * every / steps)
    yield (
        f"the moving average spans about {_averaged_steps(ema):,.0f} steps, and the run has {steps:,}: at its end,"
        f" the initial weights are still {ema.decay ** (steps // ema.every_steps):.0%} of the average. For an average"
        f" over a twentieth of the run: ema.decay={decay:.4g} ema.every_steps={every}"
    )


def memory_warnings(estimate: Estimate | None, measured: Measured | None) -> Iterator[str]:
    """A warning if the estimate is not what an earlier run used."""
    if estimate is not None and measured is not None and memory.differs(estimate, measured):
        yield f"memory: {measured_text(estimate, measured)}; trust the measurement"


def where_and_how(config: RunConfig) -> Iterator[str]:
    """Workers, batches, spans, engine and decoders. Raises ConfigError for a preemption notice that is too short."""
    layout = BatchLayout.of(config, config.workers.most)
    gpus = config.resources.gpus_per_worker
    each = f"{count(gpus, 'GPU')} each" if gpus else f"on CPUs, {count(config.resources.cpus_per_worker, 'core')} each"
    yield from row("workers", f"{config.workers} on {count(config.cluster.nodes, 'node')}, {each}")
    yield from _idle(config)
    yield from _batch(config, layout)
    yield from _engine(config)
    yield from _evaluation(config)
    if config.ema.decay is not None:
        steps = _averaged_steps(config.ema)
        yield from row("ema", f"evaluates a moving average of the weights over about {steps:,.0f} steps")
    run = RunDirectory(Path(config.storage), config.name)
    yield from row("run", str(run.path))
    if (notice := preemption_notice(config.preemption.notice_s, run)) is not None:
        yield from row("preemption", notice)
    yield from row("images", describe_decoders(config.data, on_gpu=gpus > 0))
    yield from paragraph("docs/tried.md shows where each part of this run was tested")


def _idle(config: RunConfig) -> Iterator[str]:
    """The idle processes of a run that restarts fast, and their memory."""
    if config.place == "local":
        yield from _local(config, "")
    elif config.place == "ray" or resolve_place("auto") == "ray":
        workers, most = config.workers.most // config.cluster.nodes, config.faults.warm_spares
        number = workers if most is None else min(workers, most)
        idle = "no idle process"
        if number:
            each = " each" if number > 1 else ""
            idle = f"{count(number, 'idle process')} on each node for a fast restart"
            idle += f", about {in_bytes(ray_backend.SPARE_BYTES)}{each}"
            if most is None:
                it = "it fits" if number == 1 else "they fit"
                idle += f", if {it} into {ray_backend.MEMORY_SHARE:.0%} of the node's memory"
        where = "" if config.place == "ray" else "; place auto: Ray is installed here"
        yield from row("", f"{idle} (faults.warm_spares{where})")
    else:
        yield from _local(config, "place auto: Ray is not installed here; ")


def _local(config: RunConfig, why: str) -> Iterator[str]:
    """The processes of a run without Ray, and those that are idle."""
    num, spares = config.resources.local_workers, config.faults.warm_spares
    if config.faults.max_failures == 0 and num == 1:
        return
    processes = f"{why}{count(num, 'worker process')} on this machine"
    if config.faults.max_failures == 0:
        yield from row("", f"{processes}, no idle one (faults.max_failures)")
        return
    number = 1 if spares is None else spares
    if number == 0:
        yield from row("", f"{processes}, no idle one (faults.warm_spares)")
        return
    each = " each" if number > 1 else ""
    idle = f"{count(number, 'idle process')} for a fast restart, about {in_bytes(SPARE_BYTES)}{each}"
    where = " of host memory, if there is enough" if spares is None else " of host memory"
    yield from row("", f"{processes}; {idle}{where} (faults.warm_spares)")


def _evaluation(config: RunConfig) -> Iterator[str]:
    """What evaluations beside training need."""
    if config.evaluate.beside:
        gpus, cpus = config.resources.gpus_per_worker, config.resources.cpus_per_worker
        needed = count(gpus, "GPU") if gpus else count(cpus, "core")
        where = "this machine" if config.place == "local" else "the cluster (jobs: spare_nodes: 1 in the profile)"
        text = f"beside training, on {needed} of {where} besides those of the workers; else in turn with training"
        if config.place == "local" and not gpus:
            text = "beside training, in a process of its own with a lower priority"
        yield from row("evaluation", text)


def _averaged_steps(ema: EmaRecipe) -> float:
    """Steps after which the contribution of a weight to the average has decayed to 1/e."""
    return ema.every_steps / (1 - (ema.decay or 0.0))


def _engine(config: RunConfig) -> Iterator[str]:
    engine = config.engine
    stage = "" if engine.name != "zero" else f" stage {_stage(engine)}"
    dtype = engine.gradient_dtype or ("float64" if config.precision == "float64" else "float32")
    exchange = f"gradients exchanged in {dtype}, buckets of {engine.bucket_mb:g} MiB"
    yield from row("engine", f"{engine.name}{stage}: {exchange}; {config.precision}")


def _stage(engine: EngineRecipe) -> int:
    if engine.stage is not None:
        return engine.stage
    from resnet_dist.engines.factory import DEFAULT_STAGE  # torch, for the few configs that need it

    return DEFAULT_STAGE


def _batch(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    sizes = sorted({len(layout.worker_micro_batch(0, rank)) for rank in range(config.workers.most)})
    images = " or ".join([*map(str, sizes[:-1]), count(sizes[-1], "image")])
    micro_batches = count(layout.num_micro_batches, "micro-batch")
    yield from row("batch", f"{images} per worker and micro-batch, {micro_batches} per step")
    span = settled(config).batch_norm.fixed_span
    if config.model.normalisation == "none":
        return
    if span == "worker":
        only = "the only span for which the number of workers changes results"
        yield from row("batch norm", f"each worker's own images: {only}")
        return
    length = layout.micro_batch_size if span == "global" else span
    team = largest_team(layout, length)
    exchange = f"exchanged in teams of up to {team} workers" if team > 1 else "each on one worker: nothing is exchanged"
    spans = f"{count(layout.size // length, 'span')} of {count(length, 'image')}"
    yield from row("batch norm", f"{spans}, {exchange}")
    if config.batch_norm.span == "auto" and span != "global":
        nearest = f"the divisor of {layout.micro_batch_size:,} nearest {WANTED_SPAN}"
        yield from row("", f"span {span}, chosen by auto: {nearest}")

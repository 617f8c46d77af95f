"""What a config will do, computed without GPU, Ray or data: `launcher plan CONFIG`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from launcher.errors import ConfigError, Problem
from launcher.run_config import RunConfig
from resnet_dist.durations import Every
from resnet_dist.engines.factory import DEFAULT_STAGE
from resnet_dist.extension import is_reference
from resnet_dist.memory import step_bytes
from resnet_dist.optim import build_schedule
from resnet_dist.shares import BatchLayout


def lines(config: RunConfig) -> Iterator[str]:
    """The plan, a line each. Raises ConfigError where the data set's size is not given."""
    num_samples = config.data.num_samples
    if num_samples is None:
        problem = Problem("plan", "data.num_samples", "is not given", "the number of training images")
        raise ConfigError([problem])
    batch = config.batch
    size = {"batch_size": batch.size, "num_samples": num_samples}
    total_steps = config.duration.steps(**size)
    layout = BatchLayout(batch.size, batch.parts, config.workers.most)
    yield f"{config.name}: {config.model.name}, {config.model.num_classes} classes, {config.precision}"
    yield f"  steps         {total_steps:,} = {config.duration} of {num_samples:,} images, global batch {batch.size:,}"
    yield f"                {num_samples / batch.size:,.2f} steps an epoch; epochs may end inside a batch"
    nodes, gpus = config.cluster.nodes, config.resources.gpus_per_worker
    yield f"  workers       {config.workers} on {nodes} node{'s' * (nodes > 1)}, {gpus} GPU each"
    yield from _shares(config, layout)
    yield from _engine(config, layout)
    yield from _events(config, size, total_steps)
    yield "  learning rate"
    schedule = build_schedule(config.schedule, **size, total_steps=total_steps)
    for corner in schedule.corners():
        yield f"    step {corner.step:>8,}  {corner.learning_rate:>12.6g}  {corner.name}"
    yield "  where the parts of this run were tried: docs/tried.md"


def _engine(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    engine = config.engine
    stage = "" if engine.name != "zero" else f" stage {DEFAULT_STAGE if engine.stage is None else engine.stage}"
    dtype = engine.gradient_dtype or ("float64" if config.precision == "float64" else "float32")
    yield f"  engine        {engine.name}{stage}: gradients exchanged in {dtype}, {engine.bucket_mb:g} MiB at once"
    if is_reference(config.model.name):
        return  # a plan does not run the user's code
    static_bytes, sample_bytes = step_bytes(config.recipe())
    largest = len(layout.share(0, 0).own)
    gib = (static_bytes + sample_bytes * largest) / 2**30
    yield f"  memory        about {gib:.1f} GiB a worker: {static_bytes / 2**20:,.0f} MiB of weights, gradients and"
    yield f"                momentum, {sample_bytes / 2**20:,.1f} MiB for each image of a micro-batch"


def _shares(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    sizes = sorted({len(layout.share(0, rank).own) for rank in range(config.workers.most)})
    each = " or ".join(map(str, sizes))
    yield f"  share         {each} images a worker and micro-batch, {layout.num_micro_batches} micro-batch(es) a step"
    span = config.batch_norm.span
    if span == "worker":
        yield "  batch norm    each worker's share: the one span whose statistics depend on the number of workers"
        return
    length = layout.micro_batch_size if span == "global" else span
    crossing = config.workers.most > 1 and layout.spans_cross_workers(length)
    exchange = "exchanged among the workers that share one" if crossing else "each on one worker: nothing is exchanged"
    yield f"  batch norm    {batch_spans(layout, length)} spans of {length} images, {exchange}"


def batch_spans(layout: BatchLayout, length: int) -> int:
    """Spans of `length` samples in the global batch."""
    return layout.size // length


def _events(config: RunConfig, size: dict[str, int], total_steps: int) -> Iterator[str]:
    for label, every in (("evaluated", config.evaluate.every), ("checkpoint", config.checkpoint.every)):
        period: Fraction = every.samples(**size)
        event = Every(period, config.batch.size)
        times = total_steps * event.batch_size // event.period
        first = -(-period // config.batch.size)
        yield f"  {label:<13} every {every}: {times} times, first after step {first}, and at the end"

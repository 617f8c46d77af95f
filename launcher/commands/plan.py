"""What a config will do, computed without GPU, Ray or data: `launcher plan CONFIG`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from launcher.arguments import config_arguments
from launcher.commands import notice
from launcher.commands import scaling_model as scale
from launcher.config import load as configs
from launcher.config.rules import problems
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem, UsageError
from launcher.run import heartbeats
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import LARGEST_SPAN, LEAST_SPAN, WANTED_SPAN, BatchLayout
from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import EmaRecipe

MAX_NODES = 100_000  # a column each: more is a slip of the finger


def add_parser(verbs: Any) -> None:
    """CONFIG [key=value ...] [--nodes 1,8,64,512 and what is assumed of them]"""
    verb = verbs.add_parser("plan", help="check a config without GPU or data; print steps, shares, spans and LR")
    config_arguments(verb)
    verb.add_argument("--nodes", metavar="N,N,...", help="also: what the run asks of so many nodes, and its goodput")
    on_paper = verb.add_argument_group("with --nodes")
    on_paper.add_argument("--mtbf-hours", metavar="H", type=float, help="mean time between failures of a node")
    on_paper.add_argument("--images-per-s", metavar="R", type=float, help="of one worker, computation alone")
    on_paper.add_argument("--save-s", metavar="S", type=float, help="that a checkpoint holds up the training")
    on_paper.add_argument("--restart-s", metavar="S", type=float, help="from a failure to the next step, reading aside")
    on_paper.add_argument("--storage-gb-s", metavar="R", type=float, help="that the shared storage reads")
    verb.add_argument("--ablate", action="store_true", help="also: measure here what holds the run up; needs the data")
    verb.add_argument("--steps", metavar="N", type=int, default=20, help="with --ablate: of each figure (%(default)s)")
    verb.set_defaults(run=_plan)


def _plan(given: argparse.Namespace) -> int:
    config = configs.load(given.config, given.overrides)
    try:
        config = _counted(config)
    except RecipeError as error:
        raise configs.in_users_lines(error, given.config, given.overrides) from None
    assumptions = _assumptions(given, config)
    numbers = [] if given.nodes is None else _nodes(given.nodes)
    if config.data.num_samples is not None or not given.ablate:  # --ablate finds the data itself
        for line in lines(config):
            print(line)
    if given.ablate:
        from launcher.commands import ablate  # it imports torch, which takes seconds

        for line in ablate.lines(config, given.steps):
            print(line, flush=True)
    if numbers:
        needs = _needs(config)
        loads = [(nodes, scale.load_on(nodes, needs, assumptions)) for nodes in numbers]
        for line in scale.lines(loads, assumptions):
            print(line)
    return 0


def _counted(config: RunConfig) -> RunConfig:
    """The config with the number of training images, where it is not given and the images are here."""
    data = config.data
    if data.num_samples is not None or data.source != "imagefolder" or not (Path(data.root) / "train").is_dir():
        return config
    from resnet_dist.data.image_folder import count_images  # the package imports torch, which takes seconds

    counted = count_images(data.root, "train")
    config = dataclasses.replace(config, data=dataclasses.replace(data, num_samples=counted))
    for problem in problems(config, counted):
        raise problem
    return config


def _nodes(text: str) -> Sequence[int]:
    if re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text) is None:
        raise UsageError(f"--nodes {text}: Allowed: numbers with commas between them, for example 1,8,64,512")
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= MAX_NODES for number in numbers):
        raise UsageError(f"--nodes {text}: Allowed: numbers from 1 to {MAX_NODES:,}")
    return numbers


def _assumptions(given: argparse.Namespace, config: RunConfig) -> scale.Assumptions:
    names = {
        "mtbf_hours": "node_mtbf_hours",
        "images_per_s": "images_per_s",
        "save_s": "save_stall_s",
        "restart_s": "restart_s",
        "storage_gb_s": "storage_bytes_per_s",
    }
    values = {name: getattr(given, option) for option, name in names.items() if getattr(given, option) is not None}
    for option, name in names.items():
        if name in values and not 0 < values[name] < float("inf"):
            raise UsageError(f"--{option.replace('_', '-')} {values[name]:g}: Allowed: a number above 0")
    if values and given.nodes is None:
        raise UsageError("--nodes is missing: without it nothing is computed from the other options")
    if given.nodes is not None and config.resources.gpus_per_worker == 0 and "images_per_s" not in values:
        raise UsageError("--images-per-s is missing: what a worker makes on a CPU depends on the CPU")
    if "storage_bytes_per_s" in values:
        values["storage_bytes_per_s"] *= 1e9
    return scale.Assumptions(**values)


def _needs(config: RunConfig) -> scale.Needs:
    from resnet_dist.telemetry.memory import step_bytes

    if is_reference(config.model.name):
        problem = Problem(
            "plan --nodes", "model.name", f"found {config.model.name}, the user's own", "a built-in model"
        )
        raise ConfigError([problem])  # a plan does not run the user's code, and so does not know its size
    num_samples = config.data.num_samples or 0  # `lines` has asked for it
    static_bytes, _ = step_bytes(config.recipe())
    copies = 3 if config.optimizer.momentum else 2  # in a step; a checkpoint has no gradients
    every = config.checkpoint.every.samples(batch_size=config.batch.size, num_samples=num_samples)
    return scale.Needs(
        workers_per_node=config.workers.most // config.cluster.nodes,
        batch_size=config.batch.size,
        micro_batch_size=config.batch.size // config.batch.parts,
        num_samples=num_samples,
        checkpoint_bytes=static_bytes // copies * (copies - 1),
        checkpoint_every_samples=int(every),
        heartbeat_s=heartbeats.interval_s(config.faults.hang_timeout_s),
        uses_gpus=config.resources.gpus_per_worker > 0,
    )


def lines(config: RunConfig) -> Iterator[str]:
    """The plan, a line each. Raises ConfigError where the data set's size is not given."""
    from resnet_dist.optim import build_schedule  # torch: seconds that other verbs should not pay

    num_samples = config.data.num_samples
    if num_samples is None:
        problem = Problem(
            "plan",
            "data.num_samples",
            "is not given",
            "the number of training images, or a data.root that holds them here",
        )
        raise ConfigError([problem])
    batch = config.batch
    size = {"batch_size": batch.size, "num_samples": num_samples}
    total_steps = config.duration.steps(**size)
    layout = BatchLayout(batch.size, batch.parts, config.workers.most)
    yield f"{config.name}: {config.model.name}, {config.model.num_classes} classes, {config.precision}"
    yield f"  steps         {total_steps:,} = {config.duration} of {num_samples:,} images, global batch {batch.size:,}"
    yield f"                {num_samples / batch.size:,.2f} steps an epoch; epochs may end inside a batch"
    if batch.size > num_samples:
        yield f"                WARNING: a batch has more than the {num_samples:,} images: a step sees some twice"
    nodes, gpus = config.cluster.nodes, config.resources.gpus_per_worker
    yield f"  workers       {config.workers} on {nodes} node{'s' * (nodes > 1)}, {gpus} GPU each"
    yield from _shares(config, layout)
    yield from _engine(config, layout)
    if config.ema.decay is not None:
        yield f"  ema           evaluates a moving average of the weights, about {_window(config.ema):,.0f} steps long"
    yield from _events(config, size, total_steps)
    yield from notice.lines(config)
    yield "  learning rate"
    schedule = build_schedule(config.schedule, **size, total_steps=total_steps)
    for corner in schedule.corners():
        yield f"    step {corner.step:>8,}  {corner.learning_rate:>12.6g}  {corner.name}"
    yield "  where the parts of this run were tried: docs/tried.md"


def _window(ema: EmaRecipe) -> float:
    """Steps after which a weight's part of the average has fallen to 1/e."""
    return ema.every_steps / (1 - (ema.decay or 0.0))


def _engine(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    from resnet_dist.engines.factory import DEFAULT_STAGE
    from resnet_dist.telemetry.memory import step_bytes

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
    span = settled(config).batch_norm.fixed_span
    if span == "worker":
        yield "  batch norm    each worker's share: the one span whose statistics depend on the number of workers"
        return
    length = layout.micro_batch_size if span == "global" else span
    crossing = config.workers.most > 1 and layout.spans_cross_workers(length)
    exchange = "exchanged among the workers that share one" if crossing else "each on one worker: nothing is exchanged"
    yield f"  batch norm    {batch_spans(layout, length)} spans of {length} images, {exchange}"
    if config.batch_norm.span == "auto":
        yield from _automatic_span(span, layout.micro_batch_size)


def _automatic_span(span: int | Literal["global"], micro_batch_size: int) -> Iterator[str]:
    if span == "global":
        yield f"                WARNING: span global: no divisor of {micro_batch_size:,} lies between {LEAST_SPAN} and"
        yield f"                {LARGEST_SPAN}; statistics over the whole batch are the slowest choice on a cluster"
    else:
        yield f"                span {span}, chosen by auto: the divisor of {micro_batch_size:,} nearest {WANTED_SPAN}"


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

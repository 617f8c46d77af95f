"""`launcher plan CONFIG`: what a config will do, computed without GPU, Ray or data."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from launcher.arguments import config_arguments
from launcher.checks import shared_disks
from launcher.commands import plan_batch, plan_disks
from launcher.config import load as configs
from launcher.config.rules import problems
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem, UsageError
from launcher.formatting import count, in_bytes
from launcher.planning import scaling_model
from launcher.planning.scaling_model import Assumptions, Workload
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from resnet_dist.errors import RecipeError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.batch_layout import LARGEST_SPAN, LEAST_SPAN, WANTED_SPAN, BatchLayout
from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.published import published
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import EmaRecipe
from resnet_dist.telemetry.metrics_file import read_metrics

MAX_NODES = 100_000  # one column each: more is a typing error
STEPS_TO_STOP = 2  # a worker stops at the second step boundary after a request, at the latest


def add_parser(verbs: Any) -> None:
    """CONFIG [key=value ...] [--batch B] [--nodes N,N,... and its assumptions] [--ablate [--steps N]]"""
    verb = verbs.add_parser("plan", help="check a config without GPU or data; print steps, batches, spans and LR")
    config_arguments(verb)
    verb.add_argument("--batch", metavar="B", type=int, help="print the published recipe for this batch, nothing else")
    verb.add_argument("--nodes", metavar="N,N,...", help="also estimate load and goodput for these numbers of nodes")
    group = verb.add_argument_group("with --nodes")
    group.add_argument("--mtbf-hours", metavar="H", type=float, help="mean time between failures of a node")
    group.add_argument("--images-per-s", metavar="R", type=float, help="speed of one worker, without communication")
    group.add_argument("--save-s", metavar="S", type=float, help="time that a checkpoint stops the training")
    group.add_argument("--restart-s", metavar="S", type=float, help="from a failure to the next step, without reading")
    group.add_argument("--storage-gb-s", metavar="R", type=float, help="read bandwidth of the shared storage")
    verb.add_argument("--ablate", action="store_true", help="also measure the bottleneck here; needs the data")
    verb.add_argument("--steps", metavar="N", type=int, default=20, help="with --ablate: per measurement (%(default)s)")
    verb.set_defaults(run=_plan)


def _plan(given: argparse.Namespace) -> int:
    if given.batch is not None:
        if given.nodes is not None or given.ablate:
            raise UsageError("--batch prints a recipe. Allowed: without --nodes and --ablate")
        print("\n".join(plan_batch.lines(given.config, given.overrides, given.batch)))
        return 0
    config = configs.load(given.config, given.overrides)
    config, images = _counted(config)
    assumed = _assumptions(given, config)
    numbers = [] if given.nodes is None else _nodes(given.nodes)
    if config.data.num_samples is not None or not given.ablate:  # --ablate finds the data itself
        print("\n".join(lines(config, images.mean_bytes, images.num_shards)))
        for note in images.notes:
            print(f"  WARNING: {note}")
    if given.ablate:
        from launcher.commands import ablate  # it imports torch, which takes seconds

        for line in ablate.lines(config, given.steps):
            print(line, flush=True)
    if numbers:
        workload = _workload(config, images.mean_bytes)
        estimates = {nodes: scaling_model.estimate(nodes, workload, assumed) for nodes in numbers}
        print("\n".join(scaling_model.lines(estimates, assumed)))
    return 0


@dataclasses.dataclass(frozen=True)
class _Images:
    """What is known of the images: notes on what was left out, the mean size of a training image, and the shards."""

    notes: tuple[str, ...] = ()
    mean_bytes: float | None = None
    num_shards: int | None = None


def _counted(config: RunConfig) -> tuple[RunConfig, _Images]:
    """The config with the number of training images, if it is not given and the images are on this machine.

    Raises DataError as the run would, RecipeError if there are no images here and their number is not given.
    """
    data = config.data
    if data.num_samples is not None or data.source == "synthetic" or is_reference(data.source):
        crowded = shared_disks.warning(data, data.num_samples or 0)
        return config, _Images(() if crowded is None else (crowded,))
    where = Path(data.root, "train") if data.source == "imagefolder" else Path(data.root)
    if is_address(data.root):
        if data.source == "webdataset":
            found = f"is not given, and tar files in {data.root} would be read whole to count their images"
            raise RecipeError("data.num_samples", found, "the number of training images")
    elif not os.path.isdir(where):  # noqa: PTH112  Path.is_dir raises if the folder above cannot be read
        from resnet_dist.data.sources.image_folder import fitting_source

        hint = ""
        with contextlib.suppress(OSError):
            hint = fitting_source(os.listdir(data.root))  # noqa: PTH208
        allowed = "the folder of the data set; or data.num_samples, to plan without the images"
        raise RecipeError("data.root", f"there is no folder {where} on this machine{hint}", allowed)
    from resnet_dist.data.index.table import compare_classes
    from resnet_dist.data.sources.by_name import listed, num_in_use
    from resnet_dist.data.sources.classes import in_use  # the package imports torch, which takes seconds

    train, val = listed(data, "train"), listed(data, "val")
    if train is None or val is None:  # a source that the rules refuse
        return config, _Images()
    classes, _ = in_use(data, train.classes)
    notes = [*train.notes, *val.notes, *compare_classes(data.root, classes, config.model.num_classes)]
    if crowded := shared_disks.warning(data, len(train.paths) + len(val.paths)):
        notes.append(crowded)
    counted = num_in_use(data, train)
    config = dataclasses.replace(config, data=dataclasses.replace(data, num_samples=counted))
    for problem in problems(config, config.data.num_trained()):
        raise problem
    return config, _Images(tuple(notes), plan_disks.image_bytes(data, train), len(train.shards))


def _nodes(text: str) -> Sequence[int]:
    if re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text) is None:
        raise UsageError(f"--nodes {text}: Allowed: numbers with commas between them, for example 1,8,64,512")
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= MAX_NODES for number in numbers):
        raise UsageError(f"--nodes {text}: Allowed: numbers from 1 to {MAX_NODES:,}")
    return numbers


def _assumptions(given: argparse.Namespace, config: RunConfig) -> Assumptions:
    options = {part.name: getattr(given, part.name) for part in dataclasses.fields(Assumptions)}
    values = {name: value for name, value in options.items() if value is not None}
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: Allowed: a number above 0")
    if values and given.nodes is None:
        raise UsageError("--nodes is missing: the other options are used only with it")
    if given.nodes is not None and config.resources.gpus_per_worker == 0 and "images_per_s" not in values:
        raise UsageError("--images-per-s is missing: the speed of a worker on a CPU depends on the CPU")
    return Assumptions(**values)


def _workload(config: RunConfig, mean_bytes: float | None = None) -> Workload:
    from resnet_dist.telemetry.memory import step_bytes

    if is_reference(config.model.name):  # a plan does not run the user's code
        found = f"found {config.model.name}, your own model, whose size is unknown"
        raise ConfigError([Problem("", "model.name", f"{found}, which --nodes needs", "a built-in model")])
    num_samples = config.data.num_trained() or 0  # `lines` refuses a config without it
    static_bytes, _ = step_bytes(config.recipe())
    copies = 2 + config.optimizer.num_states  # in a step; a checkpoint has no gradients
    every = config.checkpoint.every.samples(batch_size=config.batch.size, num_samples=num_samples)
    return Workload(
        workers_per_node=config.workers.most // config.cluster.nodes,
        batch_size=config.batch.size,
        micro_batch_size=config.batch.size // config.batch.parts,
        checkpoint_bytes=static_bytes // copies * (copies - 1),
        checkpoint_every_samples=int(every),
        heartbeat_s=heartbeats.interval_s(config.faults.hang_timeout_s),
        uses_gpus=config.resources.gpus_per_worker > 0,
        image_bytes=plan_disks.IMAGENET_BYTES if mean_bytes is None else mean_bytes,
    )


def lines(config: RunConfig, mean_bytes: float | None = None, num_shards: int | None = None) -> Iterator[str]:
    """The plan, line by line. Raises ConfigError if the size of the data set is not given.

    `mean_bytes`: the mean size of an encoded training image; `num_shards`: of the training split; if they are known.
    """
    num_samples = config.data.num_trained()
    if num_samples is None:
        found = f"is not given, and a plan does not call {config.data.source}"
        raise ConfigError([Problem("", "data.num_samples", found, "the number of training images")])
    from resnet_dist.data.loader import describe_decoders  # torch: seconds that other verbs should not pay
    from resnet_dist.optim import build_schedule

    batch = config.batch
    size = {"batch_size": batch.size, "num_samples": num_samples}
    total_steps = config.duration.steps(**size)
    layout = BatchLayout.of(config, config.workers.most)
    yield f"{config.name}: {config.model.name}, {config.model.num_classes} classes, {config.precision}"
    yield f"  steps         {total_steps:,} = {config.duration} of {num_samples:,} images, global batch {batch.size:,}"
    yield f"                {num_samples / batch.size:,.2f} steps per epoch; an epoch may end inside a batch"
    if batch.size > num_samples:
        yield f"                WARNING: the batch has more than the {num_samples:,} images: a step repeats some"
    gpus = config.resources.gpus_per_worker
    root = Path(config.data.root)
    if config.data.subset is not None and config.data.num_samples is not None:
        yield f"  subset        {num_samples:,} of the {config.data.num_samples:,} training images"
    if config.data.source == "imagefolder" and not is_address(config.data.root) and not os.path.isdir(root / "train"):  # noqa: PTH112
        yield f"  data          there is no folder {root / 'train'} on this machine; data.num_samples is used"
    yield from plan_disks.lines(config.data, mean_bytes, num_shards)
    yield f"  workers       {config.workers} on {count(config.cluster.nodes, 'node')}, {count(gpus, 'GPU')} each"
    yield f"  images        {describe_decoders(config.data, on_gpu=gpus > 0)}, with what is installed here"
    yield from _batch(config, layout)
    if config.data.progressive or config.evaluate.resolution is not None:
        parts = Resolutions.of(config.data, **size)
        changes = zip(parts.pixels, parts.first_steps, strict=True)
        training = ", ".join(f"{pixels} from step {step:,}" for pixels, step in changes if step < total_steps)
        yield f"  resolution    {training}; evaluation at {config.evaluation_data.resolution}"
    yield f"  training      {', '.join(_training(config))}"
    yield from _engine(config, layout)
    if config.ema.decay is not None:
        steps = _averaged_steps(config.ema)
        yield f"  ema           evaluates a moving average of the weights over about {steps:,.0f} steps"
    yield from _events(config, size, total_steps)
    yield from preemption_notice(config.preemption.notice_s, RunDirectory(Path(config.storage), config.name))
    yield "  learning rate"
    schedule = build_schedule(config.schedule, **size, total_steps=total_steps, run=config)
    for corner in schedule.corners():
        yield f"    step {corner.step:>8,}  {corner.learning_rate:>12.6g}  {corner.name}"
    if config.schedule.scaling == "table":
        yield f"    peak LR {published(config, batch.size)}"
    yield "  docs/tried.md shows where each part of this run was tested"


def _training(config: RunConfig) -> Iterator[str]:
    """The optimizer, and what is added to it: the regularizers, augmentation and loss that are not the default."""
    yield config.optimizer.name + (" with Nesterov momentum" if config.optimizer.nesterov else "")
    if config.optimizer.weight_decay:
        yield f"weight decay {config.optimizer.weight_decay:g}"
    for part in dataclasses.fields(config.regularization):
        if value := getattr(config.regularization, part.name):
            yield f"{part.name.replace('_', ' ')} {value:g}"
    if config.data.color_jitter:
        yield f"color jitter {config.data.color_jitter:g}"
    if config.data.augmentation.name != "none":
        yield config.data.augmentation.name
    balanced = " with balanced class weights" if config.loss.class_weights == "balanced" else ""
    if balanced or config.loss.name != "cross_entropy":
        yield f"loss {config.loss.name}{balanced}"
    if config.model.freeze:
        yield f"frozen: {', '.join(config.model.freeze)}"


def _averaged_steps(ema: EmaRecipe) -> float:
    """Steps after which the contribution of a weight to the average has decayed to 1/e."""
    return ema.every_steps / (1 - (ema.decay or 0.0))


def _engine(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    from resnet_dist.engines.factory import DEFAULT_STAGE
    from resnet_dist.telemetry.memory import step_bytes

    engine = config.engine
    stage = "" if engine.name != "zero" else f" stage {DEFAULT_STAGE if engine.stage is None else engine.stage}"
    dtype = engine.gradient_dtype or ("float64" if config.precision == "float64" else "float32")
    yield f"  engine        {engine.name}{stage}: gradients exchanged in {dtype}, buckets of {engine.bucket_mb:g} MiB"
    if is_reference(config.model.name):
        return  # a plan does not run the user's code
    static_bytes, sample_bytes = step_bytes(config.recipe())
    size_bytes = static_bytes + sample_bytes * len(layout.worker_micro_batch(0, 0))
    yield f"  memory        about {in_bytes(size_bytes)} per worker: {in_bytes(static_bytes)} of weights, gradients and"
    state = "moments" if config.optimizer.num_states > 1 else "momentum"
    yield f"                {state}, {in_bytes(sample_bytes)} for each image of a micro-batch"


def _batch(config: RunConfig, layout: BatchLayout) -> Iterator[str]:
    sizes = sorted({len(layout.worker_micro_batch(0, rank)) for rank in range(config.workers.most)})
    images = " or ".join([*map(str, sizes[:-1]), count(sizes[-1], "image")])
    micro_batches = count(layout.num_micro_batches, "micro-batch")
    yield f"  batch         {images} per worker and micro-batch, {micro_batches} per step"
    span = settled(config).batch_norm.fixed_span
    if config.model.normalisation == "none":
        return
    if span == "worker":
        yield "  batch norm    each worker's own images: the only span for which the number of workers changes results"
        return
    length = layout.micro_batch_size if span == "global" else span
    crossing = config.workers.most > 1 and layout.spans_cross_workers(length)
    exchange = "statistics exchanged between workers" if crossing else "each on one worker: nothing is exchanged"
    yield f"  batch norm    {count(layout.size // length, 'span')} of {count(length, 'image')}, {exchange}"
    if config.batch_norm.span == "auto":
        yield from _automatic_span(span, layout.micro_batch_size, config.workers.most)


def _automatic_span(span: int | Literal["global"], micro_batch_size: int, workers: int) -> Iterator[str]:
    if span == "global" and workers > 1:
        yield f"                WARNING: span global: no divisor of {micro_batch_size:,} lies between {LEAST_SPAN} and"
        yield f"                {LARGEST_SPAN}; statistics over the whole batch are the slowest choice on a cluster"
    elif span != "global":
        yield f"                span {span}, chosen by auto: the divisor of {micro_batch_size:,} nearest {WANTED_SPAN}"


def _events(config: RunConfig, size: dict[str, int], total_steps: int) -> Iterator[str]:
    for label, every in (("evaluation", config.evaluate.every), ("checkpoint", config.checkpoint.every)):
        event = Every(every.samples(**size), config.batch.size)
        times = event.times_within(total_steps)
        first = -(-event.period // config.batch.size)
        within = f"{count(times, 'time')}, first after step {first:,}, and at the end"
        yield f"  {label:<13} every {every}: {within if times else 'only at the end'}"
    top1, loss = config.stop_at.top1, config.stop_at.loss
    if top1 is not None or loss is not None:
        target = f"top-1 {top1:.2%}" if top1 is not None else f"loss {loss:g}"
        yield f"  target        {target}: the first evaluation that reaches it ends the run"
        if not Every(config.evaluate.every.samples(**size), config.batch.size).times_within(total_steps - 1):
            yield "                WARNING: the only evaluation is after the last step: the run cannot end earlier"


def preemption_notice(notice_s: float | None, run: RunDirectory) -> Iterator[str]:
    """A line on `preemption.notice_s`, if it is given. Raises ConfigError for a notice shorter than a save."""
    if notice_s is None:
        return
    needed_s = stop_s(run)
    if needed_s is None:
        yield f"  preemption    {notice_s:g} s of notice; not checked, as this run has saved no checkpoint yet"
        return
    if notice_s < needed_s:
        found = f"found {notice_s:g}, and stopping with a checkpoint has taken {needed_s:.1f} s in this run"
        allowed = f"{needed_s:.1f} or more; leave notice_s out if a kill may cost a checkpoint interval"
        raise ConfigError([Problem("", "preemption.notice_s", found, allowed)])
    yield f"  preemption    {notice_s:g} s of notice; stopping with a checkpoint has taken {needed_s:.1f} s"


def stop_s(run: RunDirectory) -> float | None:
    """The longest time from a preemption notice to a complete checkpoint; None before the run's first save."""
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    saves = [record["detail"] for record in records if record.get("event") == "checkpoint"]
    pairs = [(detail.get("stalled_s"), detail.get("write_s")) for detail in saves]
    times: list[float] = [stalled_s + write_s for stalled_s, write_s in pairs if None not in (stalled_s, write_s)]
    steps: list[float] = [s for record in records if (s := record.get("step_time_s")) is not None]
    return max(times) + STEPS_TO_STOP * max(steps) if times and steps else None

"""From a recipe to the finished parts of one training process: the one place that knows all of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from resnet_dist.checkpoint.hand_out import Contents, hand_out
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.data import HostBatch, Index, Stream, decoder_for, evaluation_batches, training_batches
from resnet_dist.data.shared_index import shared_indices
from resnet_dist.engines.factory import autocast_dtype, build_engine
from resnet_dist.engines.protocol import Engine
from resnet_dist.errors import DataError
from resnet_dist.models import build_model
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.optim import build_optimizer, build_schedule, sgd_kernels
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout, stream_step
from resnet_dist.recipe.durations import Duration, Every
from resnet_dist.recipe.schema import Recipe
from resnet_dist.stop_request import Supervisor
from resnet_dist.telemetry import memory
from resnet_dist.telemetry.bottleneck import StepTimes, Verdict, judge
from resnet_dist.telemetry.flops import flops_per_image, peak_flops
from resnet_dist.telemetry.liveness import Pulse
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.telemetry.profiler import StepProfiler
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training.checkpointing import RunCheckpoints, SavingPlan, facts_of
from resnet_dist.training.device import ToDevice, seed_generators, set_up_torch
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.evaluate import Evaluation, evaluate
from resnet_dist.training.trainer import Parts, Timetable, Trainer, Unprofiled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """This process among all: one rank, one device."""

    rank: int
    world_size: int
    device: torch.device
    num_threads: int  # for decoding, and for torch on a CPU
    largest_world_size: int | None = None  # that an elastic run may grow to


@dataclass(frozen=True)
class Bookkeeping:
    """What a run keeps and when; changes no result but for `skipped`."""

    checkpoints: Path  # folder
    index: Path  # folder of the saved indices
    checkpoint_every: Duration
    keep: int  # newest checkpoints
    log_every: int  # steps
    keep_best: int = 0  # checkpoints by top-1
    keep_every: Duration | None = None  # checkpoints that stay for ever
    mirror: str | None = None  # URL of object storage that gets a copy of every checkpoint
    max_save_failures: int = 3  # in a row
    still_ours: Callable[[], None] = lambda: None  # raises where another process has taken the run over
    skipped: tuple[tuple[int, int], ...] = ()  # [first, end) steps of the stream that are left out, ascending
    profile: tuple[int, int] | None = None  # first and last step to profile
    profiles: Path | None = None  # folder for them


def build(
    recipe: Recipe,
    worker: Worker,
    bookkeeping: Bookkeeping,
    sink: Sink,
    supervisor: Supervisor,
    resume: Path | None = None,
    pulse: Pulse | None = None,
) -> Trainer:
    """Everything that `worker` needs to train `recipe`, from its start or from the checkpoint `resume`.

    With more than one worker the process group must be up: this is a collective. Raises RecipeError, DataError or
    CheckpointError, the same on every worker where rank 0 finds them.
    """
    recipe = rules.settled(recipe)
    rules.check(recipe, worker.world_size)
    set_up_torch(recipe, worker.device, worker.num_threads)
    train, val = shared_indices(recipe, worker.rank, worker.world_size, bookkeeping.index)
    rules.check(recipe, worker.world_size, len(train))
    layout = BatchLayout(recipe.batch.size, recipe.batch.parts, worker.world_size)

    pulse = Pulse() if pulse is None else pulse
    spans = Spans(layout, worker.rank, recipe.batch_norm.fixed_span)
    model = whole_model(recipe, spans, worker.device)
    pulse.watch(model, worker.device, lambda: spans.waited_s)
    checkpoint = None if resume is None else hand_out(resume, worker.rank, worker.world_size, worker.device)
    if checkpoint is not None:
        _check_data(checkpoint, train)
        model.load_state_dict(checkpoint.model)
    exchange = StepExchange(RunningStatistics(model, worker.device), worker.device, recipe.batch.size)
    loss_sum = partial(cross_entropy_sum, label_smoothing=recipe.regularization.label_smoothing)
    optimizer = build_optimizer(recipe.optimizer, model, sgd_kernels(recipe, worker.device))
    engine = build_engine(recipe, model, optimizer, loss_sum)
    if checkpoint is not None:
        engine.load_optimizer_state(checkpoint.optimizer)
        engine.load_scaler_state(checkpoint.state.get("scaler", {}))
    average = _average(recipe, engine, checkpoint)

    timetable = timetable_of(recipe, len(train), bookkeeping)
    learning_rate = build_schedule(
        recipe.schedule, batch_size=recipe.batch.size, num_samples=len(train), total_steps=timetable.total_steps
    )
    skipped = bookkeeping.skipped
    if not skipped and checkpoint is not None:  # the run directory's record is gone; the checkpoint's is from a mirror
        skipped = tuple((first, end) for first, end in checkpoint.state.get("skipped", []))
    facts = facts_of(recipe, train.fingerprint(), worker.world_size, skipped)
    plan = SavingPlan(
        folder=bookkeeping.checkpoints,
        retention=_retention(recipe, bookkeeping, len(train)),
        mirror=bookkeeping.mirror,
        max_failures=bookkeeping.max_save_failures,
        still_ours=bookkeeping.still_ours,
    )
    parts = Parts(
        engine=engine,
        learning_rate=learning_rate,
        batches_from=_batches_from(recipe, worker, train, layout, timetable.total_steps, skipped),
        to_device=ToDevice(recipe, worker.device),
        evaluate=evaluator(recipe, worker, model, val, pulse, average),
        exchange=exchange,
        checkpoints=RunCheckpoints(plan, engine, facts, worker.rank, sink, average),
        sink=sink,
        supervisor=supervisor,
        seed=lambda step: seed_generators(recipe.seed, step, worker.rank, worker.device),
        average=(lambda step: None) if average is None else average.update,
        pulse=pulse,
        profiler=_profiler(bookkeeping, worker),
        judge=partial(_judge, recipe, worker),
        explain=partial(
            memory.explain,
            recipe=recipe,
            world_size=worker.world_size,
            device=worker.device,
            largest_world_size=worker.largest_world_size,
        ),
    )
    first_step = 0 if checkpoint is None else checkpoint.step
    owed = checkpoint is not None and "metrics" not in checkpoint.state and timetable.evaluate.fires_after(first_step)
    return Trainer(parts, timetable, recipe.batch.parts, first_step, evaluation_is_owed=owed, skipped=skipped)


def _batches_from(
    recipe: Recipe,
    worker: Worker,
    train: Index,
    layout: BatchLayout,
    total_steps: int,
    skipped: tuple[tuple[int, int], ...],
) -> Callable[[int], Generator[HostBatch, None, None]]:
    """A function that gives this worker's micro-batches from a step on."""
    left_out = [range(*run) for run in skipped]

    def batches_from(first_step: int) -> Generator[HostBatch, None, None]:
        decoder = decoder_for(
            recipe.data,
            device=worker.device,
            num_threads=worker.num_threads,
            max_batch_size=len(layout.share(0, worker.rank).own),
        )
        stream = Stream(len(train), recipe.seed)
        steps = (stream_step(step, left_out) for step in range(first_step, total_steps))
        yield from training_batches(train, stream, layout, worker.rank, recipe.data, recipe.seed, decoder, steps)

    return batches_from


def whole_model(recipe: Recipe, spans: Spans, device: torch.device) -> nn.Module:
    """The model on its device, batch norm over spans, in the memory layout of the recipe."""
    model = build_model(recipe.model, recipe.seed)
    model = use_spans(model, spans, momentum=recipe.batch_norm.momentum, epsilon=recipe.batch_norm.epsilon)
    model.to(device=device, dtype=torch.float64 if recipe.precision == "float64" else torch.float32)
    return model.to(memory_format=torch.channels_last) if recipe.speed.channels_last else model


def evaluator(
    recipe: Recipe,
    worker: Worker,
    model: nn.Module,
    val: Index,
    pulse: Pulse | None = None,
    average: WeightAverage | None = None,
) -> Callable[[], Evaluation]:
    """A function that evaluates `model`, with the average of its weights if there is one, on the val split.

    A collective.
    """
    to_device = ToDevice(recipe, worker.device)
    dtype = autocast_dtype(recipe)
    autocast = None if dtype is None else partial(torch.autocast, worker.device.type, dtype=dtype)

    def run() -> Evaluation:
        size = recipe.evaluate.batch_size
        decoder = decoder_for(recipe.data, device=worker.device, num_threads=worker.num_threads, max_batch_size=size)
        batches = evaluation_batches(val, worker.world_size, worker.rank, size, recipe.data, decoder)
        if pulse is not None:
            batches = pulse.beating(batches)
        weights = None if average is None else average.state()
        return evaluate(model, map(to_device, batches), len(val), worker.device, autocast, weights)

    return run


def _average(recipe: Recipe, engine: Engine, checkpoint: Contents | None) -> WeightAverage | None:
    """The moving average of the weights: from the checkpoint, or, where it holds none, begun with the weights."""
    if recipe.ema.decay is None:
        return None
    average = WeightAverage(engine.module, recipe.ema.decay, recipe.ema.every_steps)
    if checkpoint is not None and checkpoint.ema is not None:
        average.load(checkpoint.ema)
    elif checkpoint is not None:
        log.warning("%s holds no average of the weights: ema begins anew, with its weights", checkpoint.path)
    return average


def timetable_of(recipe: Recipe, num_samples: int, bookkeeping: Bookkeeping) -> Timetable:
    """When the run does what. `num_samples` is the training split's size."""
    size = {"batch_size": recipe.batch.size, "num_samples": num_samples}
    return Timetable(
        total_steps=recipe.duration.steps(**size),
        **size,
        evaluate=Every(recipe.evaluate.every.samples(**size), recipe.batch.size),
        checkpoint=Every(bookkeeping.checkpoint_every.samples(**size), recipe.batch.size),
        log_every=bookkeeping.log_every,
    )


def _retention(recipe: Recipe, bookkeeping: Bookkeeping, num_samples: int) -> Retention:
    every = bookkeeping.keep_every
    period = None if every is None else every.samples(batch_size=recipe.batch.size, num_samples=num_samples)
    return Retention(
        keep=bookkeeping.keep,
        keep_best=bookkeeping.keep_best,
        keep_every=None if period is None else Every(period, recipe.batch.size),
    )


def _profiler(bookkeeping: Bookkeeping, worker: Worker) -> StepProfiler | Unprofiled:
    if bookkeeping.profile is None or bookkeeping.profiles is None:
        return Unprofiled()
    return StepProfiler(*bookkeeping.profile, bookkeeping.profiles, worker.rank, worker.device)


def _judge(recipe: Recipe, worker: Worker, laps: list[StepTimes]) -> Verdict | None:
    """The verdict of rank 0; the others have none."""
    if worker.rank != 0:
        return None
    model = build_model(dataclasses.replace(recipe.model, weights=None), recipe.seed)
    flops = flops_per_image(model, recipe.data.resolution) * recipe.batch.size / worker.world_size
    return judge(laps, flops, peak_flops(worker.device, recipe.precision))


def _check_data(checkpoint: Contents, train: Index) -> None:
    if checkpoint.state["data"] != train.fingerprint():
        raise DataError(
            train.root,
            f"the images are not those that {checkpoint.path} was trained on: files, labels or sizes have changed. "
            "Restore them, or start a run under another name",
        )


__all__ = ["Bookkeeping", "Worker", "build", "timetable_of", "whole_model"]

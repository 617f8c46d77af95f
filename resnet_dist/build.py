"""Builds the trainer of one training process, with all of its components, from a recipe."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from resnet_dist.checkpoint.broadcast import broadcast, load_and_broadcast
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.format import step_of
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data import Index
from resnet_dist.data.decoding.choice import describe_decoders
from resnet_dist.data.decoding.region_check import region_check
from resnet_dist.data.index.shared import check_same_data, facts_of_data
from resnet_dist.data.ledger import Ledger
from resnet_dist.data.loader import HostBatch
from resnet_dist.data.order import order_of, warn_of_classes
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.factory import build_engine
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.models import build_model
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import loss_of
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.optim import build_optimizer, build_schedule, sgd_kernels
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.durations import Duration, resolved
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schema import Recipe
from resnet_dist.stop_request import Supervisor
from resnet_dist.telemetry import memory
from resnet_dist.telemetry.bottleneck import StepBottleneck, StepTimes, classify
from resnet_dist.telemetry.flops import mean_flops_per_image, peak_flops, why_no_peak
from resnet_dist.telemetry.layers import Layers, LayerStatistics, NoLayers
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.telemetry.metrics_file import Sink, unwritten
from resnet_dist.telemetry.profiler import StepProfiler
from resnet_dist.telemetry.stages import NoStages, Stages
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training import initial_weights
from resnet_dist.training.beside import Beside, BesideOptions, InTurn
from resnet_dist.training.checkpointing import RunCheckpoints, facts_of
from resnet_dist.training.device import ToDevice, Worker, seed_generators, set_up_torch
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.evaluator import evaluator
from resnet_dist.training.input import blank_batch, checked_regions, splits_of, training_input
from resnet_dist.training.leaving_out import LeavingOut
from resnet_dist.training.masks import add_masks, drawing
from resnet_dist.training.parts import TrainerParts, timetable_of
from resnet_dist.training.precise_batch_norm import PreciseBatchNorm, on_device
from resnet_dist.training.sample_images import SampleImages, ShowImages
from resnet_dist.training.survivor import MemoryState, Start
from resnet_dist.training.target import Target
from resnet_dist.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a run writes, where and how often. Of these options only `skipped` changes results."""

    checkpoint: CheckpointOptions
    index: Path  # folder of the saved indices
    checkpoint_every: Duration
    log_every: int  # steps
    shared_index: Path | None = None  # folder of the indices that the runs of a storage share
    layers_every: int | None = None  # steps between two records of kind "layers"
    skipped: tuple[tuple[int, int], ...] = ()  # [first, end) steps of the stream that are left out, ascending
    metrics: Path | None = None  # metrics.jsonl, which rank 0 completes after a start from memory
    profile: tuple[int, int] | None = None  # first and last step to profile
    profiles: Path | None = None  # folder for them
    num_images: int = 0  # images of the first step to show, of those that `show_images` can show
    show_images: ShowImages | None = None
    beside: BesideOptions | None = None  # what evaluates beside training, under evaluate.beside; None: nothing can


def build(
    recipe: Recipe,
    worker: Worker,
    options: RunOptions,
    sink: Sink,
    supervisor: Supervisor,
    resume: Path | MemoryState | None = None,
    liveness: Liveness | None = None,
    stages: Stages | None = None,
) -> Trainer:
    """The trainer of `worker` for `recipe`, from the first step, or from a checkpoint or a state in memory: `resume`.

    A collective: several workers need a process group. Raises RecipeError, DataError or CheckpointError, on every
    worker if rank 0 finds the error.
    """
    recipe = rules.settled(resolved(recipe, recipe.duration))
    options = resolved(options, recipe.duration)
    rules.check(recipe, worker.world_size)
    set_up_torch(recipe, worker.device, worker.num_threads)
    check = region_check(recipe.data, worker.device)  # runs beside what follows
    resumed = resume is not None
    liveness = Liveness() if liveness is None else liveness
    stages = NoStages() if stages is None else stages
    stages.begin("reading the list of images")
    train, val, bad = splits_of(
        recipe,
        worker,
        options.index,
        options.shared_index,
        resumed=resumed,
        beat=liveness.beat,
        tell=partial(_tell, sink, resume),
    )
    rules.check(recipe, worker.world_size, len(train))
    if worker.rank == 0:
        log.info("images: %s", describe_decoders(recipe.data, on_gpu=worker.device.type == "cuda"))
    if worker.rank == 0 and recipe.batch.size > len(train):
        found = "batch.size %d is more than the %d training images: a step repeats some"
        log.warning(found, recipe.batch.size, len(train))
    layout = BatchLayout.of(recipe, worker.world_size)

    stages.begin("building the model")
    spans = Spans(layout, worker.rank, recipe.batch_norm.fixed_span)
    model = whole_model(_with_weights(recipe, worker, resumed=resumed), spans, worker.device)
    masks = add_masks(model, recipe)
    liveness.watch(model, worker.device, lambda: spans.waited_s)
    of_data = facts_of_data(train, val, recipe.data.order)
    if resume is not None:
        stages.begin(_stage(resume))
    checkpoint = None if resume is None else _load(resume, worker, of_data, train)
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model)
    statistics = RunningStatistics(model, worker.device)
    loss_sum = loss_of(recipe, train.labels, worker.device)
    kernels = sgd_kernels(recipe, worker.device)
    optimizer = build_optimizer(recipe.optimizer, model, kernels, recipe.regularization.l1)
    leaving_out = None
    if bad is not None:
        leaving_out = LeavingOut(bad, layout, worker.rank, spans, worker.device, compiled=recipe.speed.compile)
        loss_sum = leaving_out.loss_sum(loss_sum)
    layers: Layers = NoLayers()
    if options.layers_every is not None:
        layers = LayerStatistics(model, optimizer, every_steps=options.layers_every, batch_size=recipe.batch.size)
        loss_sum = layers.loss_sum(loss_sum)
    engine = build_engine(recipe, model, optimizer, loss_sum)
    if checkpoint is not None:
        engine.load_optimizer_state(checkpoint.optimizer)
        engine.load_scaler_state(checkpoint.state.get("scaler", {}))
    average = _average(recipe, engine, checkpoint)

    timetable = timetable_of(
        recipe, (len(train), len(val)), checkpoint_every=options.checkpoint_every, log_every=options.log_every
    )
    learning_rate = build_schedule(
        recipe.schedule,
        batch_size=recipe.batch.size,
        num_samples=len(train),
        total_steps=timetable.total_steps,
        run=recipe,
    )
    skipped = options.skipped
    if not skipped and checkpoint is not None:  # lost with the run directory: from the mirror's checkpoint
        skipped = tuple((first, end) for first, end in checkpoint.state.get("skipped", []))
    order = order_of(train, recipe.data, recipe.seed)
    if worker.rank == 0:
        warn_of_classes(order, train.labels, recipe.batch.size)
    first_step, state = (0, None) if checkpoint is None else (checkpoint.step, checkpoint.state.get("ledger"))
    ledger = Ledger(order, recipe.batch.size, skipped, first_step, state)
    facts = facts_of(recipe, of_data, worker.world_size, skipped, train.classes)
    retention = options.checkpoint.retention.in_steps(batch_size=recipe.batch.size, num_samples=len(train))
    beside = InTurn()
    if recipe.evaluate.beside and options.beside is not None:
        ranks, folder = (worker.rank, worker.world_size), options.checkpoint.folder
        beside = Beside(options.beside, folder, first_step, ranks, sink, timetable.epoch)
    checkpoint_options = dataclasses.replace(options.checkpoint, retention=retention, in_use=beside.in_use)
    if bad is not None and checkpoint is not None:
        bad.load_state(checkpoint.state.get("bad_images", {}))
    worker = checked_regions(worker, recipe.data, check)
    batches_from = training_input(recipe, worker, train, order, layout, timetable.total_steps, skipped, leaving_out)
    to_device = drawing(masks, ToDevice(recipe, worker.device, training=True))
    prepare = partial(_prepare, recipe, engine, to_device, len(layout.worker_micro_batch(0, worker.rank)), stages)
    if leaving_out is not None:
        to_device = leaving_out.applied(to_device)
    precise = partial(
        PreciseBatchNorm,
        model,
        statistics,
        on_device(batches_from, to_device, liveness.beating),
        recipe.evaluate.precise_batch_norm,
        recipe.batch.parts,
    )
    if options.num_images and options.show_images is not None:
        show = partial(options.show_images, first_step + 1)
        num = options.num_images
        to_device = SampleImages(to_device, recipe.data, train.classes, num, layout.num_micro_batches, show)
    checkpoints = RunCheckpoints(checkpoint_options, engine, facts, worker.rank, sink, average, ledger, bad)
    parts = TrainerParts(
        engine=engine,
        learning_rate=learning_rate,
        batches_from=batches_from,
        to_device=to_device,
        evaluate=evaluator(recipe, worker, model, (train, val), liveness, average, precise, bad),
        beside=beside,
        exchange=StepExchange(statistics, worker.device, recipe.batch.size, ledger.num_sums),
        checkpoints=checkpoints,
        content=checkpoints.content,
        sink=sink,
        supervisor=supervisor,
        seed=lambda step: seed_generators(recipe.seed, step, worker.rank, worker.device),
        average=(lambda step: None) if average is None else average.update,
        ledger=ledger,
        bad=bad,
        liveness=liveness,
        stages=stages,
        layers=layers,
        prepare=prepare,
        release=engine.release if isinstance(engine, DdpEngine) else lambda: None,
        profiler=_profiler(options, worker),
        classify=partial(_classify, recipe, worker, len(train)),
        unwritten=partial(unwritten, options.metrics),
        translate_oom=partial(
            memory.translate_oom,
            recipe=recipe,
            world_size=worker.world_size,
            device=worker.device,
            largest_world_size=worker.largest_world_size,
        ),
    )
    target, evaluate_first, start = Target.of(recipe.stop_at), False, Start()
    if checkpoint is not None:
        start = Start.of(checkpoint)
        is_last = start.from_memory and first_step == timetable.total_steps
        evaluate_first = not start.metrics and (timetable.evaluate.fires_after(first_step) or is_last)
        if evaluate_first and start.beside and checkpoint.state["recipe"].get("evaluate", {}).get("beside"):
            evaluate_first = beside.left(first_step)
        evaluate_first |= target is not None and target.is_reached(start.metrics)  # the run ends with it
    return Trainer(parts, timetable, recipe.batch.parts, first_step, evaluate_first, skipped, target, start)


def _load(
    resume: Path | MemoryState, worker: Worker, of_data: Mapping[str, str | None], train: Index
) -> CheckpointContent:
    """The state to start from, on every worker. Raises DataError if it belongs to other images. A collective."""
    place = worker.rank, worker.world_size, worker.device
    if isinstance(resume, MemoryState):
        checkpoint = broadcast(resume.held, resume.rank, *place)
    else:
        checkpoint = load_and_broadcast(resume, *place)
    check_same_data(of_data, checkpoint.state, checkpoint.step, train)
    return checkpoint


def _first_step(resume: Path | MemoryState | None) -> int:
    if isinstance(resume, MemoryState):
        return resume.step
    return 0 if resume is None else step_of(resume.name) or 0


def _stage(resume: Path | MemoryState) -> str:
    if isinstance(resume, MemoryState):
        return f"taking over the state of step {resume.step} from worker {resume.rank}"
    return f"loading the checkpoint of step {_first_step(resume)}"


def _tell(sink: Sink, resume: Path | MemoryState | None, detail: Mapping[str, object]) -> None:
    """Record how far the making of the index is."""
    sink.write({"kind": "event", "step": _first_step(resume), "event": "indexing", "detail": detail})


def whole_model(recipe: Recipe, spans: Spans, device: torch.device) -> nn.Module:
    """The model on its device, with batch norm over spans, in the memory layout of the recipe."""
    model = build_model(recipe.model, recipe.seed, initial_weights.read)
    model = use_spans(model, spans, momentum=recipe.batch_norm.momentum, epsilon=recipe.batch_norm.epsilon)
    model.to(device=device, dtype=torch.float64 if recipe.precision == "float64" else torch.float32)
    return model.to(memory_format=torch.channels_last) if recipe.speed.channels_last else model


def _prepare(
    recipe: Recipe, engine: Engine, to_device: Callable[[HostBatch], MicroBatch], num_samples: int, stages: Stages
) -> None:
    """Capture the CUDA graph, if there is one, before a decoder of images works on the GPU. A collective."""
    if isinstance(engine, DdpEngine) and recipe.speed.cuda_graph:
        stages.begin("capturing a CUDA graph")
        engine.prepare(to_device(blank_batch(recipe, num_samples)))


def _average(recipe: Recipe, engine: Engine, checkpoint: CheckpointContent | None) -> WeightAverage | None:
    """The moving average of the weights: from the checkpoint, or else a copy of the present weights."""
    if recipe.ema.decay is None:
        if checkpoint is not None and checkpoint.ema is not None:
            num = len(checkpoint.ema)
            log.warning("the checkpoint of step %d has an ema of %d tensors, which is not used", checkpoint.step, num)
        return None
    average = WeightAverage(engine.module, recipe.ema.decay, recipe.ema.every_steps)
    if checkpoint is not None and checkpoint.ema is not None:
        average.load(checkpoint.ema)
    elif checkpoint is not None:
        log.warning("the checkpoint of step %d has no ema: ema starts from its weights", checkpoint.step)
    return average


def _with_weights(recipe: Recipe, worker: Worker, *, resumed: bool) -> Recipe:
    """The recipe with the weights that this run starts from: a file, one checkpoint, or None. A collective."""
    weights = None if resumed else recipe.model.weights
    if weights is not None:
        weights = initial_weights.chosen(weights, worker.rank, worker.world_size)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=weights))


def _without_weights(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=None))


def _profiler(options: RunOptions, worker: Worker) -> StepProfiler | None:
    if options.profile is None or options.profiles is None:
        return None
    return StepProfiler(*options.profile, options.profiles, worker.rank, worker.device)


def _classify(recipe: Recipe, worker: Worker, num_samples: int, windows: list[StepTimes]) -> StepBottleneck | None:
    """The bottleneck of the run, on rank 0; None on other ranks, and without steps."""
    if worker.rank != 0 or not windows:
        return None
    resolutions = Resolutions.of(recipe.data, batch_size=recipe.batch.size, num_samples=num_samples)
    flops = None
    try:
        model = build_model(_without_weights(recipe).model, recipe.seed)
        flops = mean_flops_per_image(model, resolutions, windows) * recipe.batch.size / worker.world_size
    except Exception as error:  # a user's model may not run on the meta device; the training is done all the same
        if not is_reference(recipe.model.name):
            raise
        log.warning("the operations of %s cannot be counted: %s: %s", recipe.model.name, type(error).__name__, error)
    peak = peak_flops(worker.device, recipe.precision)
    return classify(windows, flops, peak, "" if peak else why_no_peak(worker.device, recipe.precision))


__all__ = ["RunOptions", "Worker", "build", "whole_model"]

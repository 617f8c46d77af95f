"""Which recipes make sense: every range and every combination, found before anything is started.

An option that would silently do nothing is a mistake here: `power` without polynomial decay, `nesterov` with LARS, a
milestone after the end. Types are the business of whoever built the recipe; values are checked here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TypeVar

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import LARGEST_SPAN, LEAST_SPAN, WANTED_SPAN, automatic_span
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import (
    REFERENCE_FORM,
    at_least,
    nearest_divisors,
    one_of,
    positive,
    require,
    unused,
)
from resnet_dist.recipe.schema import DataRecipe, EmaRecipe, ModelRecipe, OptimizerRecipe, Recipe, ScheduleRecipe

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

MODEL_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),  # He et al. 2015, table 1: ImageNet
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),  # the same paper, section 4.2: 32-pixel images
)
OPTIMIZER_NAMES = ("sgd", "lars")
DECAY_NAMES = ("constant", "cosine", "polynomial", "step")
SOURCE_NAMES = ("imagefolder",)
ENGINE_NAMES = ("ddp", "zero")

_LARGEST_SEED = 2**63 - 1  # a signed 64-bit integer: what torch's generators take
_LARGEST_BATCH = 2**31 - 1  # far above any data set; keeps the search for divisors short


def problems(recipe: Recipe, world_size: int, num_samples: int | None = None) -> list[RecipeError]:
    """Everything that is wrong with `recipe` on `world_size` workers; empty when it can be trained.

    `num_samples` is the training split's size where it is known (`recipe.data.num_samples` where it is not given).
    Durations of different units are compared only when the size is known.
    """
    num_samples = recipe.data.num_samples if num_samples is None else num_samples
    return [
        *_run(recipe, num_samples),
        *_model(recipe.model),
        *_data(recipe.data),
        *_batch(recipe, world_size),
        *_batch_norm(recipe),
        *_optimizer(recipe.optimizer),
        *_ema(recipe.ema),
        *_engine(recipe),
        *_speed(recipe),
        *_learning_rates(recipe.schedule, recipe.batch.size),
        *_decay(recipe.schedule),
        *_milestones(recipe, num_samples),
    ]


def check(recipe: Recipe, world_size: int, num_samples: int | None = None) -> None:
    """Raise the first of `problems`, a RecipeError, if there is any."""
    for problem in problems(recipe, world_size, num_samples):
        raise problem


def settled(recipe: AnyRecipe) -> AnyRecipe:
    """`recipe` with the number of samples, or `global`, in the place of a batch-norm span `auto`.

    To be called before a number of micro-batches is found for `num_micro_batches: auto`, which the span must outlive.
    An `auto` that can stand for nothing stays: `problems` says why.
    """
    micro_batch = _micro_batch(recipe)
    if recipe.batch_norm.span != "auto" or micro_batch is None:
        return recipe
    span = automatic_span(micro_batch)
    if span == "global" and recipe.batch.parts != 1:
        return recipe
    return dataclasses.replace(recipe, batch_norm=dataclasses.replace(recipe.batch_norm, span=span))


def _run(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    yield from require(
        0 <= recipe.seed <= _LARGEST_SEED,
        "seed",
        recipe.seed,
        f"a whole number from 0 to {_LARGEST_SEED}",
    )
    yield from positive("duration", recipe.duration)
    yield from positive("evaluate.every", recipe.evaluate.every)
    yield from at_least(1, "evaluate.batch_size", recipe.evaluate.batch_size)
    smoothing = recipe.regularization.label_smoothing
    yield from require(0 <= smoothing < 1, "regularization.label_smoothing", smoothing, "at least 0 and below 1")
    warmup = recipe.schedule.warmup
    if recipe.duration.count > 0 and _longer(warmup, recipe.duration, recipe.batch.size, num_samples):
        yield RecipeError(
            "schedule.warmup",
            f"found {warmup}, longer than the run",
            f"at most the duration, {recipe.duration}",
        )


def _model(model: ModelRecipe) -> Iterator[RecipeError]:
    yield from one_of("model.name", model.name, MODEL_NAMES)
    yield from at_least(2, "model.num_classes", model.num_classes)
    if not is_reference(model.name):
        yield from unused("model.arguments", model.arguments or None, f"a model of your own ({REFERENCE_FORM})")
    elif "num_classes" in model.arguments:
        yield RecipeError("model.arguments", "holds num_classes, which is passed already", "the other arguments")


def _data(data: DataRecipe) -> Iterator[RecipeError]:
    yield from one_of("data.source", data.source, SOURCE_NAMES)
    yield from at_least(8, "data.resolution", data.resolution)
    area, aspect, crop = data.crop_area, data.crop_aspect, data.evaluation_crop
    yield from require(
        0 < area[0] <= area[1] <= 1, "data.crop_area", list(area), "[low, high] with 0 < low <= high <= 1"
    )
    yield from require(
        0 < aspect[0] <= aspect[1] < math.inf, "data.crop_aspect", list(aspect), "[low, high] with 0 < low <= high"
    )
    yield from require(0 < crop <= 1, "data.evaluation_crop", crop, "above 0 and at most 1")
    yield from require(all(map(math.isfinite, data.mean)), "data.mean", list(data.mean), "three finite numbers")
    yield from require(
        all(0 < value < math.inf for value in data.std), "data.std", list(data.std), "three numbers above 0"
    )
    yield from at_least(1, "data.prefetch", data.prefetch)
    if data.num_samples is not None:
        yield from at_least(1, "data.num_samples", data.num_samples)


def _batch(recipe: Recipe, world_size: int) -> Iterator[RecipeError]:
    size, parts = recipe.batch.size, recipe.batch.parts
    yield from require(1 <= size <= _LARGEST_BATCH, "batch.size", size, f"a whole number from 1 to {_LARGEST_BATCH}")
    yield from at_least(1, "batch.num_micro_batches", parts)
    micro_batch = _micro_batch(recipe)
    if micro_batch is not None and world_size > micro_batch:
        yield RecipeError(
            "workers",
            f"found {world_size}, more than the {micro_batch} samples of a micro-batch"
            f" (batch.size {size} / num_micro_batches {parts}): a worker would get none",
            f"at most {micro_batch}, or a larger batch",
        )
    elif micro_batch is None and 1 <= size <= _LARGEST_BATCH and parts >= 1:
        found = f"found {parts}, which does not divide batch.size {size}"
        yield RecipeError("batch.num_micro_batches", found, f"nearest: {nearest_divisors(size, parts)}")


def _batch_norm(recipe: Recipe) -> Iterator[RecipeError]:
    span, momentum, epsilon = settled(recipe).batch_norm.span, recipe.batch_norm.momentum, recipe.batch_norm.epsilon
    yield from require(
        momentum is None or 0 < momentum <= 1,
        "batch_norm.momentum",
        momentum,
        "above 0 and at most 1, or leave it out",
    )
    yield from require(
        epsilon is None or 0 < epsilon < math.inf, "batch_norm.epsilon", epsilon, "a number above 0, or leave it out"
    )
    micro_batch = _micro_batch(recipe)
    if micro_batch is None:
        return  # said already, and nothing can be said about spans
    if span == "auto":
        yield RecipeError(
            "batch_norm.span",
            f"found auto, which looks for a divisor of the {micro_batch} samples of a micro-batch from {LEAST_SPAN} to"
            f" {LARGEST_SPAN}: there is none, and a span of the whole batch needs num_micro_batches 1",
            f"nearest: {nearest_divisors(micro_batch, WANTED_SPAN)}; worker; or another number of micro-batches",
        )
    if span == "global" and recipe.batch.parts != 1:
        parts = recipe.batch.parts
        yield RecipeError(
            "batch_norm.span",
            f"found global with batch.num_micro_batches {parts}: statistics over the whole batch need it in one piece",
            f"num_micro_batches 1, or a span that divides {micro_batch}",
        )
    if isinstance(span, int) and (span < 1 or micro_batch % span):
        yield RecipeError(
            "batch_norm.span",
            f"found {span}, which does not divide the {micro_batch} samples of a micro-batch",
            f"nearest: {nearest_divisors(micro_batch, span)}; global or worker",
        )


def _micro_batch(recipe: Recipe) -> int | None:
    """Samples of one micro-batch over all workers, where the batch can be cut at all."""
    size, parts = recipe.batch.size, recipe.batch.parts
    return size // parts if 1 <= size <= _LARGEST_BATCH and parts >= 1 and size % parts == 0 else None


def _optimizer(optimizer: OptimizerRecipe) -> Iterator[RecipeError]:
    name, momentum = optimizer.name, optimizer.momentum
    yield from one_of("optimizer.name", name, OPTIMIZER_NAMES)
    yield from require(0 <= momentum < 1, "optimizer.momentum", momentum, "at least 0 and below 1")
    yield from require(
        0 <= optimizer.weight_decay < math.inf, "optimizer.weight_decay", optimizer.weight_decay, "a number from 0 up"
    )
    clipping = optimizer.gradient_clipping
    yield from require(
        clipping is None or 0 < clipping < math.inf,
        "optimizer.gradient_clipping",
        clipping,
        "a number above 0, or leave it out",
    )
    if optimizer.nesterov and name != "sgd":
        yield from unused("optimizer.nesterov", True, "optimizer.name sgd")
    elif optimizer.nesterov and momentum == 0:
        yield from unused("optimizer.nesterov", True, "optimizer.momentum above 0")
    trust, epsilon = optimizer.trust_coefficient, optimizer.epsilon
    if name != "lars":
        for key, value in (("trust_coefficient", trust), ("epsilon", epsilon), ("convention", optimizer.convention)):
            yield from unused(f"optimizer.{key}", value, "optimizer.name lars")
    else:
        yield from require(
            trust is None or 0 < trust < math.inf, "optimizer.trust_coefficient", trust, "a number above 0"
        )
        yield from require(
            epsilon is None or 0 <= epsilon < math.inf, "optimizer.epsilon", epsilon, "a number from 0 up"
        )
    if not is_reference(name):
        yield from unused(
            "optimizer.arguments", optimizer.arguments or None, f"an optimizer of your own ({REFERENCE_FORM})"
        )
    for taken in sorted({"groups", "momentum", "weight_decay"} & set(optimizer.arguments)):
        yield RecipeError("optimizer.arguments", f"holds {taken}, which is passed already", "the other arguments")


def _ema(ema: EmaRecipe) -> Iterator[RecipeError]:
    allowed = "above 0 and below 1 (0.9999), or leave it out"
    yield from require(ema.decay is None or 0 < ema.decay < 1, "ema.decay", ema.decay, allowed)
    yield from at_least(1, "ema.every_steps", ema.every_steps)
    if ema.decay is None and ema.every_steps > 1:
        yield from unused("ema.every_steps", ema.every_steps, "an ema.decay")


def _engine(recipe: Recipe) -> Iterator[RecipeError]:
    engine, precision = recipe.engine, recipe.precision
    yield from one_of("engine.name", engine.name, ENGINE_NAMES)
    yield from require(0 < engine.bucket_mb < math.inf, "engine.bucket_mb", engine.bucket_mb, "MiB, above 0")
    if not is_reference(engine.name):
        yield from unused("engine.arguments", engine.arguments or None, f"an engine of your own ({REFERENCE_FORM})")
    if engine.name != "zero":
        yield from unused("engine.stage", engine.stage, "engine.name zero")
    elif engine.stage == 3:
        yield RecipeError(
            "engine.stage",
            "found 3, which partitions the weights: a ResNet's (100 MB for ResNet-50) fit on every worker, and"
            " gathering them in every layer would cost time for nothing",
            "0, 1 or 2",
        )
    elif engine.stage not in (None, 0, 1, 2):
        yield RecipeError("engine.stage", f"found {engine.stage}", "0, 1 or 2")
    if engine.name == "zero" and precision in ("float16", "float64"):
        why = "the weights that ZeRO updates are float32" if precision == "float64" else "ZeRO has no loss scaler here"
        yield RecipeError("precision", f"found {precision} with engine.name zero: {why}", "float32, tf32 or bfloat16")
    if precision == "float64" and engine.gradient_dtype is not None:
        found = f"found {engine.gradient_dtype} with precision float64"
        yield RecipeError("engine.gradient_dtype", found, "leave it out")


def _speed(recipe: Recipe) -> Iterator[RecipeError]:
    speed, optimizer, engine = recipe.speed, recipe.optimizer.name, recipe.engine.name
    if optimizer != "sgd" and speed.optimizer != "auto":
        yield from unused("speed.optimizer", speed.optimizer, "optimizer.name sgd")
    if engine != "ddp":
        for key in ("compile", "cuda_graph", "static_graph"):
            yield from unused(f"speed.{key}", getattr(speed, key) or None, "engine.name ddp")
    if speed.optimizer == "fused" and recipe.precision == "float16":
        found = (
            "found fused with precision float16: where the loss scaler skips the first step, its momentum is unwritten"
        )
        yield RecipeError("speed.optimizer", found, "auto, foreach or loop")
    if speed.cuda_graph and recipe.precision == "float16":
        found = "found true with precision float16, whose loss scaler asks the host at every step"
        yield RecipeError("speed.cuda_graph", found, "precision bfloat16, or cuda_graph false")
    num_parts = recipe.batch.num_micro_batches
    if speed.static_graph and num_parts != 1:
        found = (
            f"found true with batch.num_micro_batches {num_parts}: torch's DDP ends with an internal error where"
            " a static graph adds up the gradients of several micro-batches"
        )
        yield RecipeError("speed.static_graph", found, "num_micro_batches 1, or static_graph false")
    if speed.compile and engine == "ddp" and 0 < recipe.engine.bucket_mb < 1:
        found = (
            f"found true with engine.bucket_mb {recipe.engine.bucket_mb:g}: torch compiles a model under DDP only with"
            " buckets of 1 MiB or more"
        )
        yield RecipeError("speed.compile", found, "engine.bucket_mb from 1 up, or compile false")
    if speed.cuda_graph and recipe.batch.parts > 1:
        found = f"found true with batch.num_micro_batches {recipe.batch.parts}: a graph sets gradients, it cannot add"
        yield RecipeError("speed.cuda_graph", found, "num_micro_batches 1, or cuda_graph false")


def _learning_rates(schedule: ScheduleRecipe, batch_size: int) -> Iterator[RecipeError]:
    given = {"peak_lr": schedule.peak_lr, "base_lr": schedule.base_lr}
    rates = {key: value for key, value in given.items() if value is not None}
    if len(rates) != 1:
        found = "found neither peak_lr nor base_lr" if not rates else "found both peak_lr and base_lr"
        yield RecipeError(
            "schedule.peak_lr", found, "exactly one of schedule.peak_lr and schedule.base_lr (for a batch of 256)"
        )
    for key, value in rates.items():
        yield from require(0 < value < math.inf, f"schedule.{key}", value, "a number above 0")
    start, end = schedule.warmup_start_lr, schedule.end_lr
    yield from require(0 <= start < math.inf, "schedule.warmup_start_lr", start, "a number from 0 up")
    yield from require(0 <= end < math.inf, "schedule.end_lr", end, "a number from 0 up")
    if start > 0 and schedule.warmup.count == 0:
        yield from unused("schedule.warmup_start_lr", start, "a schedule.warmup")
    if len(rates) == 1 and batch_size >= 1:
        [(key, value)] = rates.items()
        peak = value if key == "peak_lr" else value * batch_size / 256  # linear scaling, Goyal et al. 2017
        for name, rate in (("warmup_start_lr", start), ("end_lr", end)):
            if 0 < peak <= rate < math.inf:
                yield RecipeError(f"schedule.{name}", f"found {rate}", f"below the peak LR, {peak:g}")


def _decay(schedule: ScheduleRecipe) -> Iterator[RecipeError]:
    decay, power, gamma = schedule.decay, schedule.power, schedule.gamma
    yield from one_of("schedule.decay", decay, DECAY_NAMES)
    if decay != "polynomial":
        yield from unused("schedule.power", power, "schedule.decay polynomial")
    else:
        yield from require(power is None or 0 < power < math.inf, "schedule.power", power, "a number above 0")
    if decay != "step":
        yield from unused("schedule.gamma", gamma, "schedule.decay step")
    else:
        yield from require(gamma is None or 0 < gamma < 1, "schedule.gamma", gamma, "above 0 and below 1")
    if decay in ("constant", "step"):
        yield from unused("schedule.end_lr", schedule.end_lr or None, "schedule.decay cosine or polynomial")


def _milestones(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    key, milestones, warmup = "schedule.milestones", recipe.schedule.milestones, recipe.schedule.warmup
    if recipe.schedule.decay != "step":
        yield from unused(key, [str(milestone) for milestone in milestones] or None, "schedule.decay step")
        return
    if not milestones:
        yield RecipeError(key, "found none", "with schedule.decay step: a list of durations, ascending")

    def longer(first: Duration, second: Duration) -> bool | None:
        return _longer(first, second, recipe.batch.size, num_samples)

    for earlier, later in itertools.pairwise(milestones):
        if longer(later, earlier) is False:
            yield RecipeError(key, f"found {later} after {earlier}", "durations, ascending")
    for milestone in milestones:
        if longer(recipe.duration, milestone) is False:
            yield RecipeError(key, f"found {milestone}, not within the run", f"before the end at {recipe.duration}")
        if longer(milestone, warmup) is False:
            yield RecipeError(key, f"found {milestone}, not after warm-up", f"durations above the warm-up, {warmup}")


def _longer(first: Duration, second: Duration, batch_size: int, num_samples: int | None) -> bool | None:
    """Whether `first` is longer than `second`; None when that needs the data set's size, which is not known."""
    if first.unit == second.unit or 0 in (first.count, second.count):
        return first.count > second.count
    if "epochs" in (first.unit, second.unit) and num_samples is None:
        return None
    sizes = {"batch_size": batch_size, "num_samples": num_samples or 1}  # 1: no epochs, so it takes no part
    return first.samples(**sizes) > second.samples(**sizes)

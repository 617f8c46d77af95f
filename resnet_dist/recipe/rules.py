"""The rules for recipes: allowed values and combinations, checked before anything is started.

An option that would have no effect is an error: `power` without polynomial decay, `nesterov` with LARS, a milestone
after the end. Types are checked by the config loader.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import LARGEST_SPAN, LEAST_SPAN, WANTED_SPAN, automatic_span
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import (
    DURATION_ABOVE_0,
    LARGEST_COUNT,
    REFERENCE_FORM,
    nearest_divisors,
    one_of,
    unused,
    values,
    whole,
)
from resnet_dist.recipe.scaling import peak_learning_rate
from resnet_dist.recipe.schema import Recipe, plain

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

MODEL_NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),  # He et al. 2015, table 1: ImageNet
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),  # the same paper, section 4.2: 32-pixel images
)
OPTIMIZER_NAMES = ("sgd", "lars")
DECAY_NAMES = ("constant", "cosine", "polynomial", "step")
_WITHOUT_END = ("constant", "step")
SOURCE_NAMES = ("imagefolder",)
ENGINE_NAMES = ("ddp", "zero")

_LARGEST_SEED = 2**63 - 1  # a signed 64-bit integer: what torch's generators accept
_PARTS = ("batch.size", "batch.num_micro_batches")  # the keys that give the size of a micro-batch
_MOST_CLASSES = 1_000_000  # a larger head of a ResNet-50 does not fit into the memory of a GPU
_LARGEST_IMAGE = 65_535  # pixels: of a JPEG's side; the square of a larger one would not fit into 32 bits


def _above_0(value: float) -> bool:
    return 0 < value < math.inf


def _from_0(value: float) -> bool:
    return 0 <= value < math.inf


# key, its condition, what is allowed
_VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", *whole(0, _LARGEST_SEED)),
    ("duration", *DURATION_ABOVE_0),
    ("evaluate.every", *DURATION_ABOVE_0),
    ("evaluate.batch_size", *whole(1)),
    ("regularization.label_smoothing", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("model.num_classes", *whole(2, _MOST_CLASSES)),
    ("data.resolution", *whole(8, _LARGEST_IMAGE)),
    ("data.crop_area", lambda area: 0 < area[0] <= area[1] <= 1, "[low, high] with 0 < low <= high <= 1"),
    ("data.crop_aspect", lambda ratio: 0 < ratio[0] <= ratio[1] < math.inf, "[low, high] with 0 < low <= high"),
    ("data.evaluation_crop", lambda crop: 0 < crop <= 1, "above 0 and at most 1"),
    ("data.mean", lambda mean: all(map(math.isfinite, mean)), "three finite numbers"),
    ("data.std", lambda std: all(map(_above_0, std)), "three numbers above 0"),
    ("data.prefetch", *whole(1)),
    ("data.num_samples", *whole(1)),
    ("batch.size", *whole(1)),
    ("batch.num_micro_batches", lambda num: num == "auto" or num >= 1, "a whole number from 1 up"),
    ("batch_norm.momentum", lambda value: 0 < value <= 1, "above 0 and at most 1, or leave it out"),
    ("batch_norm.epsilon", _above_0, "a number above 0, or leave it out"),
    ("optimizer.momentum", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("optimizer.weight_decay", _from_0, "a number from 0 up"),
    ("optimizer.gradient_clipping", _above_0, "a number above 0, or leave it out"),
    ("optimizer.trust_coefficient", _above_0, "a number above 0"),
    ("optimizer.epsilon", _from_0, "a number from 0 up"),
    ("ema.decay", lambda value: 0 < value < 1, "above 0 and below 1 (0.9999), or leave it out"),
    ("ema.every_steps", *whole(1)),
    ("engine.bucket_mb", lambda size: 0 < size <= LARGEST_COUNT, f"MiB, above 0 and up to {LARGEST_COUNT}"),
    ("schedule.peak_lr", _above_0, "a number above 0"),
    ("schedule.base_lr", _above_0, "a number above 0"),
    ("schedule.warmup_start_lr", _from_0, "a number from 0 up"),
    ("schedule.end_lr", _from_0, "a number from 0 up"),
    ("schedule.power", _above_0, "a number above 0"),
    ("schedule.gamma", lambda value: 0 < value < 1, "above 0 and below 1"),
)

# key, the condition under which it has an effect, the key that decides it, and the value that this key needs
_USES: tuple[tuple[str, Callable[[Recipe], bool], str, str], ...] = (
    ("model.arguments", lambda r: is_reference(r.model.name), "model.name", REFERENCE_FORM),
    ("optimizer.arguments", lambda r: is_reference(r.optimizer.name), "optimizer.name", REFERENCE_FORM),
    ("engine.arguments", lambda r: is_reference(r.engine.name), "engine.name", REFERENCE_FORM),
    ("optimizer.nesterov", lambda r: r.optimizer.name == "sgd", "optimizer.name", "sgd"),
    ("optimizer.nesterov", lambda r: r.optimizer.momentum != 0, "optimizer.momentum", "above 0"),
    ("optimizer.trust_coefficient", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.epsilon", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("optimizer.lr_in_momentum", lambda r: r.optimizer.name == "lars", "optimizer.name", "lars"),
    ("ema.every_steps", lambda r: r.ema.decay is not None, "ema.decay", "above 0"),
    ("engine.stage", lambda r: r.engine.name == "zero", "engine.name", "zero"),
    ("speed.sgd_kernel", lambda r: r.optimizer.name == "sgd", "optimizer.name", "sgd"),
    ("speed.compile", lambda r: r.engine.name == "ddp", "engine.name", "ddp"),
    ("speed.cuda_graph", lambda r: r.engine.name == "ddp", "engine.name", "ddp"),
    ("schedule.warmup_start_lr", lambda r: r.schedule.warmup.count > 0, "schedule.warmup", "above 0"),
    ("schedule.power", lambda r: r.schedule.decay == "polynomial", "schedule.decay", "polynomial"),
    ("schedule.gamma", lambda r: r.schedule.decay == "step", "schedule.decay", "step"),
    ("schedule.milestones", lambda r: r.schedule.decay == "step", "schedule.decay", "step"),
    ("schedule.end_lr", lambda r: r.schedule.decay not in _WITHOUT_END, "schedule.decay", "cosine or polynomial"),
)


def problems(recipe: Recipe, world_size: int, num_samples: int | None = None) -> list[RecipeError]:
    """All errors in `recipe` on `world_size` workers; empty if it can be trained.

    `num_samples` is the training split's size if it is known; it defaults to `recipe.data.num_samples`. Durations in
    different units are compared only if it is known.
    """
    num_samples = recipe.data.num_samples if num_samples is None else num_samples
    return [
        *_names(recipe),
        *values(recipe, _VALUES),
        *_uses(recipe),
        *_warmup(recipe, num_samples),
        *_batch(recipe, world_size),
        *_batch_norm(recipe),
        *_arguments(recipe),
        *_engine(recipe),
        *_speed(recipe),
        *_learning_rates(recipe),
        *_milestones(recipe, num_samples),
    ]


def check(recipe: Recipe, world_size: int, num_samples: int | None = None) -> None:
    """Raise the first of `problems`, a RecipeError, if there is any."""
    for problem in problems(recipe, world_size, num_samples):
        raise problem


def shorter_than(recipe: Recipe, steps: int, num_samples: int | None) -> list[RecipeError]:
    """An error if the duration is shorter than `steps`; none if that depends on an unknown size of the data set."""
    if recipe.duration.unit == "epochs" and num_samples is None:
        return []
    asked = recipe.duration.steps(batch_size=recipe.batch.size, num_samples=num_samples or 1)  # 1: not used
    if asked >= steps:
        return []
    number = "" if recipe.duration.unit == "steps" else f", {asked:,} steps"
    found = f"found {recipe.duration}{number}, and {steps:,} steps are done"
    return [RecipeError("duration", found, f"at least {steps} steps", ("batch.size",))]


def settled(recipe: AnyRecipe) -> AnyRecipe:
    """`recipe` with a batch-norm span `auto` replaced by a number of samples or `global`.

    Call it before `num_micro_batches: auto` is resolved, since the span must not change with that number. An `auto` for
    which there is no span stays; `problems` explains why.
    """
    micro_batch = _micro_batch(recipe)
    if recipe.batch_norm.span != "auto" or micro_batch is None:
        return recipe
    span = automatic_span(micro_batch)
    if span == "global" and recipe.batch.parts != 1:
        return recipe
    return dataclasses.replace(recipe, batch_norm=dataclasses.replace(recipe.batch_norm, span=span))


def _names(recipe: Recipe) -> Iterator[RecipeError]:
    yield from one_of("model.name", recipe.model.name, MODEL_NAMES)
    yield from one_of("data.source", recipe.data.source, SOURCE_NAMES)
    yield from one_of("optimizer.name", recipe.optimizer.name, OPTIMIZER_NAMES)
    yield from one_of("engine.name", recipe.engine.name, ENGINE_NAMES)
    yield from one_of("schedule.decay", recipe.schedule.decay, DECAY_NAMES)


def _uses(recipe: Recipe) -> Iterator[RecipeError]:
    """Keys that differ from their defaults but have no effect."""
    for key, has_effect, decided_by, wanted in _USES:
        section_name, name = key.split(".")
        section = getattr(recipe, section_name)
        part = next(part for part in dataclasses.fields(section) if part.name == name)
        default = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        value = getattr(section, name)
        if value != default and not has_effect(recipe):
            yield from unused(key, plain(value), f"{decided_by} {wanted}", (decided_by,))


def _arguments(recipe: Recipe) -> Iterator[RecipeError]:
    """Arguments of the user's functions that the caller passes already."""
    passed = {"model": {"num_classes"}, "optimizer": {"groups", "momentum", "weight_decay"}}
    for section, names in passed.items():
        if is_reference(getattr(recipe, section).name):
            for name in sorted(names & set(getattr(recipe, section).arguments)):
                found = f"found {name}, which is passed already"
                yield RecipeError(f"{section}.arguments", found, "the other arguments")


def _warmup(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    warmup = recipe.schedule.warmup
    if recipe.duration.count > 0 and _longer(warmup, recipe.duration, recipe.batch.size, num_samples):
        allowed = f"at most the duration, {recipe.duration}"
        yield RecipeError(
            "schedule.warmup", f"found {warmup}, longer than the run", allowed, ("duration", "batch.size")
        )


def _batch(recipe: Recipe, world_size: int) -> Iterator[RecipeError]:
    size, parts = recipe.batch.size, recipe.batch.parts
    micro_batch = _micro_batch(recipe)
    if micro_batch is not None and world_size > micro_batch:
        yield RecipeError(
            "workers",
            f"found {world_size}, more than the {micro_batch} samples of a micro-batch"
            f" (batch.size {size} / num_micro_batches {parts}): some workers would have no samples",
            f"at most {micro_batch}, or a larger batch",
            _PARTS,
        )
    elif micro_batch is None and 1 <= size <= LARGEST_COUNT and parts >= 1:
        found = f"found {parts}, which does not divide batch.size {size}"
        yield RecipeError("batch.num_micro_batches", found, f"nearest: {nearest_divisors(size, parts)}", _PARTS)


def _batch_norm(recipe: Recipe) -> Iterator[RecipeError]:
    span, micro_batch = settled(recipe).batch_norm.span, _micro_batch(recipe)
    if micro_batch is None:
        return  # reported by `_batch`
    if span == "auto":
        yield RecipeError(
            "batch_norm.span",
            f"found auto, but no number from {LEAST_SPAN} to {LARGEST_SPAN} divides the {micro_batch} samples of a"
            " micro-batch, and a span of the whole batch needs num_micro_batches 1",
            f"nearest: {nearest_divisors(micro_batch, WANTED_SPAN)}; worker; or another number of micro-batches",
            _PARTS,
        )
    if span == "global" and recipe.batch.parts != 1:
        yield RecipeError(
            "batch_norm.span",
            f"found global with batch.num_micro_batches {recipe.batch.parts}: statistics over the whole batch need all"
            " of its samples at once",
            f"num_micro_batches 1, or a span that divides {micro_batch}",
            _PARTS,
        )
    if isinstance(span, int) and (span < 1 or micro_batch % span):
        yield RecipeError(
            "batch_norm.span",
            f"found {span}, which does not divide the {micro_batch} samples of a micro-batch",
            f"nearest: {nearest_divisors(micro_batch, span)}; global or worker",
            _PARTS,
        )


def _micro_batch(recipe: Recipe) -> int | None:
    """Samples of one micro-batch over all workers; None if the batch cannot be split."""
    size, parts = recipe.batch.size, recipe.batch.parts
    return size // parts if 1 <= size <= LARGEST_COUNT and parts >= 1 and size % parts == 0 else None


def _engine(recipe: Recipe) -> Iterator[RecipeError]:
    engine, precision = recipe.engine, recipe.precision
    if engine.name == "zero" and engine.stage not in (None, 0, 1, 2):
        why = ": partitioned weights would be gathered in every layer, and a ResNet's fit on every worker"
        yield RecipeError("engine.stage", f"found {engine.stage}{why if engine.stage == 3 else ''}", "0, 1 or 2")
    if engine.name == "zero" and precision in ("float16", "float64"):
        why = "the weights that ZeRO updates are float32" if precision == "float64" else "ZeRO has no loss scaler here"
        found = f"found {precision} with engine.name zero: {why}"
        yield RecipeError("precision", found, "float32, tf32 or bfloat16", ("engine.name",))
    if precision == "float64" and engine.gradient_dtype is not None:
        found = f"found {engine.gradient_dtype} with precision float64"
        yield RecipeError("engine.gradient_dtype", found, "leave it out", ("precision",))


def _speed(recipe: Recipe) -> Iterator[RecipeError]:
    speed, bucket_mb = recipe.speed, recipe.engine.bucket_mb
    if speed.sgd_kernel == "fused" and recipe.precision == "float16":
        found = "found fused with precision float16: the momentum is uninitialised if the first step is skipped"
        yield RecipeError("speed.sgd_kernel", found, "auto, foreach or loop", ("precision",))
    if speed.cuda_graph and recipe.precision == "float16":
        found = "found true with precision float16, whose loss scaler needs the host in every step"
        yield RecipeError("speed.cuda_graph", found, "precision bfloat16, or cuda_graph false", ("precision",))
    if speed.cuda_graph and recipe.batch.parts > 1:
        found = (
            f"found true with batch.num_micro_batches {recipe.batch.parts}: a graph overwrites gradients and cannot"
            " accumulate them"
        )
        yield RecipeError("speed.cuda_graph", found, "num_micro_batches 1, or cuda_graph false", _PARTS)
    if speed.compile and recipe.engine.name == "ddp" and 0 < bucket_mb < 1:
        found = (
            f"found true with engine.bucket_mb {bucket_mb:g}: torch compiles a model under DDP only with buckets of"
            " 1 MiB or more"
        )
        yield RecipeError("speed.compile", found, "engine.bucket_mb from 1 up, or compile false", ("engine.bucket_mb",))


def _learning_rates(recipe: Recipe) -> Iterator[RecipeError]:
    try:
        peak = peak_learning_rate(recipe.schedule, recipe.batch.size)
    except RecipeError as error:
        yield error
        return
    for name in ("warmup_start_lr", "end_lr"):
        rate = getattr(recipe.schedule, name)
        if 0 < peak <= rate < math.inf:
            others = ("schedule.peak_lr", "schedule.base_lr", "batch.size")
            yield RecipeError(f"schedule.{name}", f"found {rate}", f"below the peak LR, {peak:g}", others)


def _milestones(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    key, milestones, warmup = "schedule.milestones", recipe.schedule.milestones, recipe.schedule.warmup
    if recipe.schedule.decay != "step":
        return
    if not milestones:
        allowed = "with schedule.decay step: a list of durations, ascending"
        yield RecipeError(key, "found none", allowed, ("schedule.decay",))

    def longer(first: Duration, second: Duration) -> bool | None:
        return _longer(first, second, recipe.batch.size, num_samples)

    for earlier, later in itertools.pairwise(milestones):
        if longer(later, earlier) is False:
            yield RecipeError(key, f"found {later} after {earlier}", "durations, ascending")
    for milestone in milestones:
        if longer(recipe.duration, milestone) is False:
            allowed = f"before the end at {recipe.duration}"
            yield RecipeError(key, f"found {milestone}, not within the run", allowed, ("duration", "batch.size"))
        if longer(milestone, warmup) is False:
            allowed, others = f"durations above the warm-up, {warmup}", ("schedule.warmup", "batch.size")
            yield RecipeError(key, f"found {milestone}, not after warm-up", allowed, others)


def _longer(first: Duration, second: Duration, batch_size: int, num_samples: int | None) -> bool | None:
    """Whether `first` is longer than `second`; None if that depends on an unknown size of the data set."""
    if first.unit == second.unit or 0 in (first.count, second.count):
        return first.count > second.count
    if "epochs" in (first.unit, second.unit) and num_samples is None:
        return None
    sizes = {"batch_size": batch_size, "num_samples": num_samples or 1}  # 1: not used, there are no epochs
    return first.samples(**sizes) > second.samples(**sizes)

"""What a run trains, in a few lines, for the person who has started it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from launcher.config.schema import RunConfig
from launcher.formatting import count
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.scaling import REFERENCE_BATCH, peak_learning_rate

_SPANS: dict[object, str] = {"global": "all of them", "worker": "each worker's"}


def description(config: RunConfig, workers: int, *, step: int, total_steps: int, num_samples: int) -> list[str]:
    """Duration, model, data, batch, optimizer with its regularizers, and learning rate.

    `step`: the completed steps that the run continues from; `num_samples`: the number of training images.
    """
    batch, data = config.batch, config.data
    each = -(-batch.size // batch.parts // workers)
    parts = f" x {batch.parts} micro-batches" if batch.parts > 1 else ""
    done = f", {step:,} of them done" if step else ""
    span = settled(config).batch_norm.fixed_span
    norm = "" if config.model.normalisation == "none" else f", batch norm over {_SPANS.get(span, span)}"
    where = f" at {data.root}" if data.root else ""
    given = "" if config.duration.unit == "steps" else f"{config.duration} = "
    return [
        f"duration   {given}{count(total_steps, 'step')}{done}",
        f"model      {config.model.name}, {count(config.model.num_classes, 'class')}, {config.precision}",
        f"data       {data.source}{where}: {count(num_samples, 'image')}, {data.resolution} px",
        f"batch      {batch.size:,} = {count(workers, 'worker')} x {each:,}{parts}{norm}",
        f"optimizer  {', '.join(optimization(config))}",
        f"peak LR    {peak_lr_text(config)}, {_schedule(config)}",
    ]


def optimization(config: RunConfig) -> Iterator[str]:
    """The optimizer, and what is added to it: the regularizers, augmentation and loss that are not the default."""
    yield config.optimizer.name
    if config.optimizer.name in ("sgd", "lars") and config.optimizer.momentum:
        yield f"{'Nesterov ' if config.optimizer.nesterov else ''}momentum {config.optimizer.momentum:g}"
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
    if config.ema.decay is not None:
        yield f"ema {config.ema.decay:g}"
    if config.model.freeze:
        yield f"frozen: {', '.join(config.model.freeze)}"


def peak_lr_text(config: RunConfig) -> str:
    """The peak LR, and how it follows from the base LR and the batch.

    With `base_lr: 0.1` and a batch of 128: `0.05 = base LR 0.1 x 128 / 256`.
    """
    schedule, size = config.schedule, config.batch.size
    peak = f"{peak_learning_rate(schedule, size, config):.6g}"
    if schedule.scaling == "table":
        return f"{peak} of the published runs with a batch of {size:,}"
    if schedule.base_lr is None:
        return peak
    if schedule.scaling == "linear":
        return f"{peak} = base LR {schedule.base_lr:g} x {size:,} / {REFERENCE_BATCH}"
    return f"{peak} = base LR, not scaled"


def _schedule(config: RunConfig) -> str:
    warmup = f"warm-up {config.schedule.warmup}, " if config.schedule.warmup.count else ""
    return f"{warmup}then {config.schedule.decay}" if warmup else config.schedule.decay

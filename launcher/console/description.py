"""What a run trains, in a few lines, for the person who has started it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from launcher.config.schema import RunConfig
from launcher.formatting import count
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.scaling import REFERENCE_BATCH, peak_learning_rate


def description(config: RunConfig, run: RunDirectory, *, step: int, total_steps: int, num_samples: int) -> list[str]:
    """Model, data, batch, optimizer with its regularizers, learning rate, duration and run directory.

    `step`: what the run continues from; `num_samples`: the number of training images.
    """
    batch, data = config.batch, config.data
    workers = count(config.workers.most, "worker")
    each = -(-batch.size // config.workers.most // batch.parts)
    parts = f" × {batch.parts} micro-batches" if batch.parts > 1 else ""
    begin = f"continues after step {step:,}" if step else "from the beginning"
    span = settled(config).batch_norm.fixed_span
    norm = f", batch norm over {span if isinstance(span, int) else f'the {span} batch'}"
    where = f" at {data.root}" if data.root else ""
    return [
        f"run        {run.path}",
        f"duration   {config.duration} = {count(total_steps, 'step')}, {begin}",
        f"model      {config.model.name}, {count(config.model.num_classes, 'class')}, {config.precision}",
        f"data       {data.source}{where}: {count(num_samples, 'image')}, {data.resolution} px",
        f"batch      {batch.size:,} = {workers} × {each:,}{parts}{'' if config.model.normalisation == 'none' else norm}",
        f"optimizer  {', '.join(optimization(config))}",
        f"peak LR    {peak_lr_text(config)}, {_schedule(config)}",
    ]


def optimization(config: RunConfig) -> Iterator[str]:
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
    if config.ema.decay is not None:
        yield f"ema {config.ema.decay:g}"
    if config.model.freeze:
        yield f"frozen: {', '.join(config.model.freeze)}"


def peak_lr_text(config: RunConfig) -> str:
    """The peak LR, and how it follows from the base LR and the batch.

    With `base_lr: 0.1` and a batch of 128: `0.05 = base LR 0.1 × 128 / 256`.
    """
    schedule, size = config.schedule, config.batch.size
    peak = f"{peak_learning_rate(schedule, size, config):.6g}"
    if schedule.scaling == "table":
        return f"{peak} of the published runs with a batch of {size:,}"
    if schedule.base_lr is None:
        return peak
    if schedule.scaling == "linear":
        return f"{peak} = base LR {schedule.base_lr:g} × {size:,} / {REFERENCE_BATCH}"
    return f"{peak} = base LR, not scaled"


def _schedule(config: RunConfig) -> str:
    warmup = f"warm-up {config.schedule.warmup}, " if config.schedule.warmup.count else ""
    return f"{warmup}then {config.schedule.decay}" if warmup else config.schedule.decay

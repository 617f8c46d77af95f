"""The schedule of a plan: steps, events, and the learning rate as a curve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from launcher.commands.plan_text import row, shows_blocks, width
from launcher.config.schema import RunConfig
from launcher.formatting import count
from launcher.planning.curve_plot import curve
from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.published import published
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schedule import build_schedule

_CURVE_WIDTH, _CURVE_HEIGHT = 68, 10
_TICKS = 4  # parts of the horizontal axis
_WIDE = 60  # columns of a terminal with space for margins


class Size(TypedDict):
    """What converts durations."""

    batch_size: int
    num_samples: int


def lines(config: RunConfig, num_samples: int) -> Iterator[str]:
    """Steps, evaluations, checkpoints, resolutions and the learning rate of a run on `num_samples` images."""
    size: Size = {"batch_size": config.batch.size, "num_samples": num_samples}
    total_steps = config.duration.steps(**size)
    of = f"{config.duration} of {num_samples:,} images, global batch {config.batch.size:,}"
    yield from row("steps", f"{total_steps:,} = {of}")
    per_epoch = num_samples / config.batch.size
    yield from row("", f"{per_epoch:,.2f} steps per epoch; an epoch may end inside a batch")
    if config.data.subset is not None and config.data.num_samples is not None:
        yield from row("subset", f"{num_samples:,} of the {config.data.num_samples:,} training images")
    if config.data.progressive or config.evaluate.resolution is not None:
        parts = Resolutions.of(config.data, **size)
        changes = zip(parts.pixels, parts.first_steps, strict=True)
        training = ", ".join(f"{pixels} from step {step:,}" for pixels, step in changes if step < total_steps)
        yield from row("resolution", f"{training}; evaluation at {config.evaluation_data.resolution}")
    yield from _events(config, size, total_steps)
    if (target := target_text(config)) is not None:
        yield from row("target", f"{target}: the first evaluation that reaches it ends the run")
    yield from _learning_rate(config, size, total_steps)


def _events(config: RunConfig, size: Size, total_steps: int) -> Iterator[str]:
    for label, every in (("evaluation", config.evaluate.every), ("checkpoint", config.checkpoint.every)):
        event = Every(every.samples(**size), config.batch.size)
        times = event.times_within(total_steps)
        first = -(-event.period // config.batch.size)
        within = f"{count(times, 'time')}, first after step {first:,}, and at the end"
        yield from row(label, f"every {every}: {within if times else 'only at the end'}")


def target_text(config: RunConfig) -> str | None:
    """The target of `stop_at`; None without one."""
    top1, loss = config.stop_at.top1, config.stop_at.loss
    if top1 is None and loss is None:
        return None
    return f"top-1 {top1:.2%}" if top1 is not None else f"loss {loss:g}"


def ends_only_at_the_end(config: RunConfig, num_samples: int) -> bool:
    """Whether a run with a target has only one evaluation, after its last step."""
    size: Size = {"batch_size": config.batch.size, "num_samples": num_samples}
    event = Every(config.evaluate.every.samples(**size), config.batch.size)
    return target_text(config) is not None and not event.times_within(config.duration.steps(**size) - 1)


def _learning_rate(config: RunConfig, size: Size, total_steps: int) -> Iterator[str]:
    schedule = build_schedule(config.schedule, **size, total_steps=total_steps, run=config)
    yield "  learning rate"
    epochs = float(config.duration.samples(**size)) / size["num_samples"]
    ticks = [f"{epochs * part / _TICKS:.3g}" for part in range(_TICKS)] + [f"{epochs:.4g} epochs"]
    columns = min(_CURVE_WIDTH, width() - 4)
    drawn = curve(
        schedule, total_steps, width=columns, height=_CURVE_HEIGHT, ticks=ticks, ascii_only=not shows_blocks()
    )
    yield from (f"    {line}" for line in drawn)
    corners = [(f"{one.step:,}", f"{one.learning_rate:.5g}", one.name) for one in schedule.corners()]
    longest = [max(map(len, column)) for column in zip(*corners, strict=True)]
    margin, space = ("    ", "  ") if width() >= _WIDE else ("  ", " ")
    for step, rate, name in corners:
        yield f"{margin}step {step:>{longest[0]}}{space}{rate:>{longest[1]}}{space}{name}"
    if config.schedule.scaling == "table":
        yield from row("", f"peak LR {published(config, size['batch_size'])}")

"""Rules for `duration`, `schedule` and the times of `data.progressive`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.requirements import ABOVE_0, DURATION_ABOVE_0, FROM_0, Uses, Values, one_of
from resnet_dist.recipe.scaling import peak_learning_rate
from resnet_dist.recipe.schema import Recipe

DECAY_NAMES = ("constant", "cosine", "polynomial", "exponential", "trapezoid", "step")
_WITHOUT_END = ("constant", "step")
_WITH_END = "cosine, polynomial, exponential, trapezoid or package.module:function"

VALUES: Values = (
    ("duration", *DURATION_ABOVE_0),
    ("schedule.peak_lr", *ABOVE_0),
    ("schedule.base_lr", *ABOVE_0),
    ("schedule.warmup_start_lr", *FROM_0),
    ("schedule.end_lr", *FROM_0),
    ("schedule.power", *ABOVE_0),
    ("schedule.gamma", lambda value: 0 < value < 1, "above 0 and below 1"),
    ("schedule.decay_length", *DURATION_ABOVE_0),
)

USES: Uses = (
    ("schedule.warmup_start_lr", lambda r: r.schedule.warmup.count > 0, "schedule.warmup", "above 0"),
    ("schedule.power", lambda r: r.schedule.decay == "polynomial", "schedule.decay", "polynomial"),
    ("schedule.gamma", lambda r: r.schedule.decay == "step", "schedule.decay", "step"),
    ("schedule.milestones", lambda r: r.schedule.decay == "step", "schedule.decay", "step"),
    ("schedule.end_lr", lambda r: r.schedule.decay not in _WITHOUT_END, "schedule.decay", _WITH_END),
    ("schedule.decay_length", lambda r: r.schedule.decay == "trapezoid", "schedule.decay", "trapezoid"),
    # `table` is for a recipe with neither of the two, which `peak_learning_rate` checks
    ("schedule.scaling", lambda r: r.schedule.peak_lr is None, "schedule.base_lr", "in place of schedule.peak_lr"),
)


def problems(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    """Errors in the schedule. Durations in different units are compared only if `num_samples` is known."""
    yield from one_of("schedule.decay", recipe.schedule.decay, DECAY_NAMES)
    yield from _warmup(recipe, num_samples)
    yield from _learning_rates(recipe)
    yield from _milestones(recipe, num_samples)
    yield from _decay(recipe, num_samples)
    yield from _progressive(recipe, num_samples)


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


def _warmup(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    warmup = recipe.schedule.warmup
    if recipe.duration.count > 0 and _longer(warmup, recipe.duration, recipe.batch.size, num_samples):
        allowed = f"at most the duration, {recipe.duration}"
        yield RecipeError(
            "schedule.warmup", f"found {warmup}, longer than the run", allowed, ("duration", "batch.size")
        )


def _learning_rates(recipe: Recipe) -> Iterator[RecipeError]:
    try:
        peak = peak_learning_rate(recipe.schedule, recipe.batch.size, recipe)
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


def _decay(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    schedule = recipe.schedule
    if schedule.decay == "exponential" and schedule.end_lr == 0:
        allowed = "with schedule.decay exponential: a number above 0, which the LR reaches at the end"
        yield RecipeError("schedule.end_lr", "found 0", allowed, ("schedule.decay",))
    if schedule.decay != "trapezoid" or recipe.batch.size < 1:
        return
    length = Duration(Fraction(20), "%").of(recipe.duration) if schedule.decay_length is None else schedule.decay_length
    parts = (schedule.warmup, length, recipe.duration)
    if num_samples is None and len({part.unit == "epochs" for part in parts if part.count > 0}) > 1:
        return
    warmup, decay, total = (part.samples(batch_size=recipe.batch.size, num_samples=num_samples or 1) for part in parts)
    if recipe.duration.count > 0 and warmup <= total < warmup + decay:
        found = f"found {length}, which with a warm-up of {schedule.warmup} is longer than the run"
        others = ("schedule.warmup", "duration", "batch.size")
        yield RecipeError("schedule.decay_length", found, f"at most {recipe.duration} with the warm-up", others)


def _progressive(recipe: Recipe, num_samples: int | None) -> Iterator[RecipeError]:
    key, parts, size = "data.progressive", recipe.data.progressive, recipe.batch.size
    for earlier, later in itertools.pairwise(parts):
        if _longer(later, earlier, size, num_samples) is False:
            yield RecipeError(key, f"found {later} after {earlier}", "times, ascending", ("batch.size",))
    for time in parts:
        if _longer(recipe.duration, time, size, num_samples) is False:
            allowed = f"before the end at {recipe.duration}"
            yield RecipeError(key, f"found {time}, not within the run", allowed, ("duration", "batch.size"))
    before = recipe.data.resolution if len(recipe.data.training_resolutions) > len(parts) else None
    for time, pixels in parts.items():
        if pixels == before:
            found = f"found {pixels} from {time} on, which is the resolution before it"
            yield RecipeError(key, found, "another resolution, or leave the time out", ("data.resolution",))
        before = pixels


def _longer(first: Duration, second: Duration, batch_size: int, num_samples: int | None) -> bool | None:
    """Whether `first` is longer than `second`; None if that depends on an unknown size of the data set."""
    if first.unit == second.unit or 0 in (first.count, second.count):
        return first.count > second.count
    if "epochs" in (first.unit, second.unit) and num_samples is None:
        return None
    sizes = {"batch_size": batch_size, "num_samples": num_samples or 1}  # 1: not used, there are no epochs
    return first.samples(**sizes) > second.samples(**sizes)

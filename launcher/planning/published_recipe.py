"""The published recipe for a batch as the keys of a config, and how a config differs from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig
from launcher.run.recorded import FREE
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.published import MODEL, NUM_CLASSES, NUM_SAMPLES, Published, published
from resnet_dist.recipe.scaling import peak_learning_rate
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, Recipe, ScheduleRecipe, plain

# Keys of the sections below that are not compared: they change no result beyond rounding or the pixels' last bits, or
# the sources do not say (zero_gamma).
_NOT_COMPARED = (*FREE, "model.zero_gamma", "optimizer.epsilon", "data.mean", "data.std", "schedule.scaling")
_COMPARED = ("model.", "data.", "optimizer.", "schedule.", "regularization.", "loss.", "ema.", "evaluate.resolution")
_MEANT_BY_NONE = {  # defaults of `resnet_dist.optim` and `resnet_dist.recipe.schedule`
    "optimizer.trust_coefficient": 0.001,
    "optimizer.lr_in_momentum": True,
    "schedule.power": 2.0,
    "schedule.gamma": 0.1,
}
_SAME_LENGTH = 0.01  # durations that differ by less count as the same: 44 epochs are 6,882 steps, MLPerf's row 6,877


def recipe_overrides(found: Published, config: RunConfig) -> dict[str, Any]:
    """The keys that change `config` to the published recipe; other keys keep their values."""
    schedule = dict(found.origin.schedule)
    peak_lr, warmup, duration = found.number("peak_lr"), *_lengths(found)
    if schedule.get("warmup_start_lr", 0.0) >= peak_lr:  # Goyal et al. 2017 at a batch of 256: nothing to warm up to
        del schedule["warmup_start_lr"]
        warmup = "0 steps"
    optimizer = {"momentum": found.number("momentum"), "weight_decay": found.number("weight_decay")}
    return {
        "name": f"{config.name}-{found.batch}",
        "batch.size": found.batch,
        "duration": duration,
        "optimizer": {"name": found.origin.optimizer["name"], **optimizer, **found.origin.optimizer},
        "schedule": {"peak_lr": peak_lr, "warmup": warmup, **schedule},
        "batch_norm.span": found.batch_norm_span or "auto",
        "regularization.label_smoothing": found.origin.label_smoothing,
    }


def _lengths(found: Published) -> tuple[str, str]:
    """Warm-up and duration: as the source gives them, or interpolated, in epochs."""
    if found.exact:
        (run,) = found.runs
        return str(run.warmup), str(run.duration)
    return f"{found.number('warmup_epochs'):g} epochs", f"{found.number('duration_epochs'):g} epochs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A config beside the published recipe for its batch. Keys are dotted; both sets are those of a config file."""

    found: Published
    same: frozenset[str]  # keys with the published value
    other: frozenset[str]  # keys with another value, or with a value that the published runs leave at its default

    @property
    def is_published(self) -> bool:
        """Whether the config trains what was published: one of its runs, not numbers between two of them."""
        return self.found.exact and not self.other


def compared(config: RunConfig) -> Comparison | None:
    """The config beside the published runs with its optimizer and batch; None if there are none."""
    try:
        found = published(config, config.batch.size, replaces_optimizer=True)
    except RecipeError:
        return None
    wanted = flatten(recipe_overrides(found, config))
    del wanted["name"]
    own, defaults = _values(config.recipe()), _values(least_recipe(config))
    if config.schedule.base_lr is not None or config.schedule.scaling == "table":
        own |= {"schedule.peak_lr": peak_learning_rate(config.schedule, config.batch.size, config)}
        own |= {"schedule.base_lr": None}
    if wanted["batch_norm.span"] == "auto":  # the source does not say
        del wanted["batch_norm.span"]
    same = {key for key, value in wanted.items() if _is_same(own.get(key), value, config.batch.size)}
    rest = (key for key in own if key.startswith(_COMPARED) and key not in {*wanted, *_NOT_COMPARED})
    unexpected = {key for key in rest if own[key] != defaults.get(key)}
    return Comparison(found, frozenset(same), frozenset(wanted.keys() - same | unexpected))


def trains_published_network(config: RunConfig) -> bool:
    """Whether the network and the images are those of the published runs."""
    same = (config.model.name, config.model.num_classes) == (MODEL, NUM_CLASSES)
    return same and config.data.num_samples == NUM_SAMPLES and config.data.subset is None


def least_recipe(config: RunConfig) -> Recipe:
    """A recipe that gives only what every recipe must give."""
    batch = BatchRecipe(size=config.batch.size)
    return Recipe(data=DataRecipe(), batch=batch, duration=config.duration, schedule=ScheduleRecipe())


def _values(recipe: Recipe) -> dict[str, Any]:
    values = flatten(plain(recipe))
    values |= {key: meant for key, meant in _MEANT_BY_NONE.items() if values[key] is None}
    if values["evaluate.resolution"] is None:
        values["evaluate.resolution"] = recipe.data.resolution
    return values


def _is_same(own: object, wanted: object, batch_size: int) -> bool:
    """Whether two values of a key are equal; numbers up to rounding, and lengths up to `_SAME_LENGTH`."""
    if isinstance(wanted, list) and isinstance(own, list) and len(own) == len(wanted):
        return all(_is_same(a, b, batch_size) for a, b in zip(own, wanted, strict=True))
    if isinstance(wanted, int | float) and isinstance(own, int | float):
        return math.isclose(own, wanted, rel_tol=1e-6)
    if isinstance(wanted, str) and isinstance(own, str) and own != wanted:
        return _is_same_length(own, wanted, batch_size)
    return own == wanted


def _is_same_length(own: str, wanted: str, batch_size: int) -> bool:
    try:
        lengths = [Duration.parse(text) for text in (own, wanted)]
    except ValueError:  # another text, such as the name of a decay
        return False
    steps = [length.steps(batch_size=batch_size, num_samples=NUM_SAMPLES) for length in lengths]
    return math.isclose(*steps, rel_tol=_SAME_LENGTH)

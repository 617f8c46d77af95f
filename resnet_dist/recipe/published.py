"""Published runs of ResNet-50 on ImageNet-1k by batch (published.json), and the numbers for batches in between.

An origin is one group of runs by the same authors with the same code. Numbers are interpolated only between two
neighbouring runs of one origin, linearly in the batch: MLPerf's rule for the epochs to the target
(mlperf_logging/rcp_checker). Nothing is extrapolated.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import OptimizerRecipe, Recipe, plain

NUM_SAMPLES = 1_281_167  # training images of ImageNet-1k
MODEL = "resnet50"
NUM_CLASSES = 1000
TARGET_TOP1 = 0.759  # MLPerf's target, to which `epochs_of_each` count

# What a key of the optimizer that is None, or that an origin does not have, stands for.
_DEFAULTS = {"lr_in_momentum": True, "trust_coefficient": 0.001, "nesterov": False}

Number = Literal["peak_lr", "weight_decay", "momentum", "warmup_epochs", "duration_epochs", "epochs_to_target"]


@dataclass(frozen=True)
class Run:
    """The hyperparameters of the published runs with one batch. Lengths are in the unit of the source."""

    batch: int
    peak_lr: float
    weight_decay: float
    momentum: float
    warmup: Duration
    duration: Duration
    batch_norm_span: int | None  # None: not in the source
    epochs_of_each: tuple[int, ...]  # epochs of each of the runs to 75.9 % top-1; empty if not in the source
    top1: float | None  # at the end

    @property
    def epochs_to_target(self) -> float | None:
        """The mean of `epochs_of_each` without the best and the worst."""
        return _olympic_mean(self.epochs_of_each) if self.epochs_of_each else None

    @property
    def warmup_epochs(self) -> float:
        """The warm-up in epochs."""
        return self._epochs(self.warmup)

    @property
    def duration_epochs(self) -> float:
        """The whole run in epochs."""
        return self._epochs(self.duration)

    def _epochs(self, length: Duration) -> float:
        return float(length.samples(batch_size=self.batch, num_samples=NUM_SAMPLES) / NUM_SAMPLES)


@dataclass(frozen=True)
class Origin:
    """Runs of the same authors. `optimizer` and `schedule` have the keys that are the same for all of them."""

    name: str
    source: str
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    label_smoothing: float
    runs: tuple[Run, ...]  # by ascending batch

    def fits(self, optimizer: OptimizerRecipe) -> bool:
        """Whether these are runs of that optimizer; of LARS, with its way to apply the LR."""
        differences = self.differences(optimizer)
        return "name" not in differences and "lr_in_momentum" not in differences

    def differences(self, optimizer: OptimizerRecipe) -> dict[str, Any]:
        """The keys that `optimizer` has with another value than these runs, with their value.

        Momentum and weight decay are not among them: they differ from run to run.
        """
        wanted = {"nesterov": _DEFAULTS["nesterov"], **self.optimizer}
        found = {key: getattr(optimizer, key) for key in wanted}
        found = {key: _DEFAULTS.get(key) if value is None else value for key, value in found.items()}
        return {key: value for key, value in wanted.items() if found[key] != value}

    def covers(self, batch: int) -> bool:
        """Whether `batch` is within the range of the runs."""
        return self.runs[0].batch <= batch <= self.runs[-1].batch

    def __str__(self) -> str:
        first, last = self.runs[0].batch, self.runs[-1].batch
        batches = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        lr_in_momentum = self.optimizer.get("lr_in_momentum")
        how = "" if lr_in_momentum is None else f", lr_in_momentum {str(lr_in_momentum).lower()}"
        return f"{batches} ({self.name}: {self.optimizer['name']}{how})"


@dataclass(frozen=True)
class Published:
    """What `origin` says about `batch`: `runs` are the published run, or the two neighbours of the batch."""

    origin: Origin
    batch: int
    runs: tuple[Run, ...]

    @property
    def exact(self) -> bool:
        """Whether a run with this batch was published."""
        return len(self.runs) == 1

    def number(self, name: Number) -> float | None:
        """The published number, or the interpolated one, to six digits. None if the source does not have it.

        >>> google = origins()[0]
        >>> Published(google, 16384, google.runs[1:3]).number("peak_lr")    # 17 at 8,192; 21.2 at 32,768
        18.4
        """
        found = [getattr(run, name) for run in self.runs]
        if None in found:
            return None
        if self.exact:
            return float(found[0])
        below, above = self.runs
        part = (self.batch - below.batch) / (above.batch - below.batch)
        return float(f"{found[0] + (found[1] - found[0]) * part:.6g}")

    @property
    def batch_norm_span(self) -> int | None:
        """The span of the nearest run, if it divides the batch."""
        nearest = min(self.runs, key=lambda run: abs(run.batch - self.batch))
        span = nearest.batch_norm_span
        return span if span is not None and self.batch % span == 0 else None

    def __str__(self) -> str:
        """Whether it is published or interpolated, and by whom."""
        if self.exact:
            return f"published by {self.origin.name}"
        batches = " and ".join(f"{run.batch:,}" for run in self.runs)
        return f"interpolated between runs of {self.origin.name} with {batches}"


def published(recipe: Recipe, batch: int, *, replaces_optimizer: bool = False) -> Published:
    """The runs of this setting with `batch`, or those around it; of several origins, the table's first.

    A setting is the network, the images and the optimizer. With `replaces_optimizer`, of the optimizer only the name
    and `lr_in_momentum` count: the caller takes the other keys from the origin. Raises RecipeError for another setting,
    and outside of every range.
    """
    _check_network(recipe)
    matching = [origin for origin in origins() if origin.fits(recipe.optimizer)]
    covering = [origin for origin in matching if origin.covers(batch)]
    if not covering:
        raise _unpublished(recipe.optimizer, batch, matching)
    same = [origin for origin in covering if replaces_optimizer or not origin.differences(recipe.optimizer)]
    if not same:
        raise _other_optimizer(recipe.optimizer, covering[0])
    origin = same[0]
    exact = [run for run in origin.runs if run.batch == batch]
    around = (pair for pair in itertools.pairwise(origin.runs) if pair[0].batch < batch < pair[1].batch)
    return Published(origin, batch, tuple(exact) or next(around))


def _check_network(recipe: Recipe) -> None:
    model, data = recipe.model, recipe.data
    wrong = [
        (model.name != MODEL, f"model.name {model.name}"),
        (model.num_classes != NUM_CLASSES, f"model.num_classes {model.num_classes}"),
        (data.num_samples not in (None, NUM_SAMPLES), f"data.num_samples {data.num_samples}"),
        (data.subset is not None, f"data.subset {data.subset}"),
    ]
    others = [what for is_wrong, what in wrong if is_wrong]
    if others:
        allowed = f"{MODEL} on ImageNet-1k ({NUM_CLASSES:,} classes, {NUM_SAMPLES:,} images): the published runs"
        keys = ("model.name", "model.num_classes", "data.num_samples", "data.subset")
        raise RecipeError("schedule.scaling", f"found {', '.join(others)}", allowed, keys)


def _other_optimizer(optimizer: OptimizerRecipe, origin: Origin) -> RecipeError:
    wanted = origin.differences(optimizer)
    found = ", ".join(f"optimizer.{key} {json.dumps(plain(getattr(optimizer, key)))}" for key in wanted)
    allowed = ", ".join(f"optimizer.{key} {json.dumps(value)}" for key, value in wanted.items())
    keys = tuple(f"optimizer.{key}" for key in wanted)
    return RecipeError("schedule.scaling", f"found {found}", f"{allowed}, as in the runs of {origin.name}", keys)


def _unpublished(optimizer: OptimizerRecipe, batch: int, matching: list[Origin]) -> RecipeError:
    mine = "; ".join(map(str, matching)) or f"none of {optimizer.name}"
    largest = max(run.batch for origin in origins() for run in origin.runs if run.epochs_to_target is not None)
    others = [origin for origin in origins() if origin not in matching and origin.covers(batch)]
    ahead = f"batch.size={batch} batch_norm.span=auto schedule.scaling=linear schedule.peak_lr=LR"
    return RecipeError(
        "batch.size",
        f"found {batch:,}, for which nobody has published a run with this optimizer. Published with it: {mine}. Runs to"
        f" 75.9 % top-1 are published up to a batch of {largest:,}",
        "; ".join(
            [*(f"another optimizer, with runs at {other}" for other in others), f"a learning rate of your own: {ahead}"]
        ),
        ("optimizer.name", "optimizer.lr_in_momentum", "schedule.scaling"),
    )


@functools.cache
def origins() -> tuple[Origin, ...]:
    """All origins of the table."""
    table = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    return tuple(
        Origin(
            name=origin["name"],
            source=origin["source"],
            optimizer=origin["optimizer"],
            schedule=origin["schedule"],
            label_smoothing=origin["label_smoothing"],
            runs=tuple(_run(**run) for run in origin["runs"]),
        )
        for origin in table["origins"]
    )


def _run(
    *,
    batch: int,
    warmup: str,
    duration: str | None = None,
    after_warmup: str | None = None,
    batch_norm_span: int | None = None,
    epochs_to_target: list[int] | None = None,
    top1: float | None = None,
    **numbers: float,
) -> Run:
    length = Duration.parse(duration or after_warmup or "")
    if after_warmup is not None:  # in steps, as in MLPerf's rows
        size = {"batch_size": batch, "num_samples": NUM_SAMPLES}
        length = Duration(length.count + Duration.parse(warmup).steps(**size), length.unit)
    return Run(
        batch=batch,
        warmup=Duration.parse(warmup),
        duration=length,
        batch_norm_span=batch_norm_span,
        epochs_of_each=tuple(epochs_to_target or ()),
        top1=top1,
        **numbers,
    )


def _olympic_mean(values: Sequence[int]) -> float:
    """The mean without the smallest and the largest value.

    >>> _olympic_mean([42, 44, 43, 41, 41, 41, 42, 42, 43, 41])
    41.875
    """
    kept = sorted(values)[1:-1]
    return sum(kept) / len(kept)

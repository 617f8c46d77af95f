"""The keys of a study file. docs/studies.md explains them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DrawRange:
    """From where a value is drawn: one of the two."""

    uniform: tuple[float, float] | None = None  # smallest and largest value
    log_uniform: tuple[float, float] | None = None  # smallest and largest value; the logarithm is uniform


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random search: `trials` points, whose values are drawn."""

    trials: int
    keys: dict[str, DrawRange]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tune:
    """The grid over `keys` runs on `seeds` only; of each other combination, the best value then runs on all seeds."""

    keys: tuple[str, ...]
    by: str = "top1"
    best: Literal["largest", "smallest"] | None = None  # value of `by`; default: smallest for a loss, else largest
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Successive halving: after these fractions of a run, only the best fraction of the combinations goes on."""

    at: tuple[float, ...]
    by: str = "loss"
    best: Literal["largest", "smallest"] | None = None  # value of `by`; default: smallest for a loss, else largest
    keep: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Differences from a baseline, paired by seed."""

    baseline: dict[str, Any]
    metric: str = "top1"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the report.

    line     the metric y against the key x, mean and interval over seeds, a line for each combination of `by`
    bar      the same as bars
    curve    the record field y (train.loss, eval.top1) against the step, mean and range over seeds
    layers   the field y of the first "layers" record against the layer
    """

    kind: Literal["line", "bar", "curve", "layers"]
    y: str
    x: str | None = None
    by: tuple[str, ...] | str | None = None  # keys; default: all others that vary


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file."""

    study: Literal[1]  # version of this format
    name: str  # the folder of the study is storage/name
    base: str  # a run config, relative to this file
    storage: str | None = None  # default: that of `base`
    hypothesis: str = ""  # written down before; printed in the report
    overrides: dict[str, Any] = field(default_factory=dict)  # of every run
    grid: dict[str, tuple[Any, ...]] | None = None  # all combinations
    sets: tuple[dict[str, Any], ...] | None = None  # keys that change together; `label` names a set
    draw: Draw | None = None
    seeds: tuple[int, ...] = (0,)
    tune: Tune | None = None
    halving: Halving | None = None
    may_diverge: bool = False  # a loss that is not finite is a result, not a failure
    metrics: tuple[str, ...] = ("top1", "loss")
    compare: Compare | None = None
    figures: tuple[Figure, ...] = ()
    full: dict[str, Any] | None = None  # keys that replace others with --full, which `load` has done already

"""What earlier runs say about the top-1 accuracy that a run reaches: own runs, and the published reference runs.

A probability is given only from runs with the same recipe, as a fraction of them. Nothing is fitted or extrapolated.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig
from launcher.planning.forecast import COVERAGE, Interval
from launcher.planning.history import finished
from launcher.planning.published_recipe import compared
from launcher.planning.student_t import t_quantile
from launcher.run.directory import RunDirectory
from launcher.run.recorded import FREE, newest_recipe, recipe_of
from resnet_dist.input_files import read_whole
from resnet_dist.recipe.published import NUM_SAMPLES, TARGET_TOP1
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import Recipe, plain

# Keys in which runs of the same experiment may differ. Other images (data.root) are another experiment.
_IGNORED = ({*FREE} - {"data.root"}) | {"seed", "batch.num_micro_batches", "deterministic"}
_IGNORED |= {"evaluate.every", "evaluate.batch_size", "evaluate.train", "evaluate.beside", "evaluate.metrics"}
_MOST_SEEDS = 20  # the newest: more make the interval hardly better
_IGNORED_SECTIONS = ("engine.", "speed.", "data.cache.")


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How many of some runs with the same recipe reached a target."""

    target: float  # top-1, a fraction
    reached: int
    num: int  # at least 1
    source: str  # for a person: whose runs

    @property
    def interval(self) -> Interval:
        """The fraction of runs that reach the target, with Wilson's 80 % interval (1927), which is not empty at 100 %.

        >>> found = Chance(target=0.759, reached=10, num=10, source="").interval
        >>> round(found.low, 3), found.median, found.high
        (0.859, 1.0, 1.0)
        """
        z = statistics.NormalDist().inv_cdf((1 + COVERAGE) / 2)
        part, spread = self.reached / self.num, z * z / self.num
        middle = (part + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (part * (1 - part) + spread / 4)) / (1 + spread)
        return Interval(low=max(0.0, min(part, middle - half)), median=part, high=min(1.0, max(part, middle + half)))


@dataclass(frozen=True, kw_only=True)
class OwnRuns:
    """The results of finished runs with the same recipe, one for each seed."""

    top1: tuple[float, ...]  # fractions
    names: tuple[str, ...]

    def interval(self) -> Interval | None:
        """The interval of the next run's top-1; None for fewer than two runs, whose spread is unknown.

        mean ± t(0.9, n - 1) s sqrt(1 + 1/n): Student's prediction interval. It assumes a normal distribution.
        """
        n = len(self.top1)
        if n < 2:
            return None
        mean, deviation = statistics.fmean(self.top1), statistics.stdev(self.top1)
        half = t_quantile((1 + COVERAGE) / 2, n - 1) * deviation * math.sqrt(1 + 1 / n)
        return Interval(low=max(0.0, mean - half), median=mean, high=min(1.0, mean + half))

    def chance(self, target: float) -> Chance:
        """How many of the runs reached `target`."""
        reached = sum(top1 >= target for top1 in self.top1)
        return Chance(target=target, reached=reached, num=len(self.top1), source="own runs with this recipe")


def expected(config: RunConfig) -> Interval | None:
    """The top-1 accuracy that own runs let expect, as a fraction; None if fewer than two of them are finished."""
    own = own_runs(config)
    return None if own is None else own.interval()


def reference_chance(config: RunConfig) -> Chance | None:
    """How many of MLPerf's reference runs with the recipe of `config` reached 75.9 % top-1 within its epochs.

    None if there are none with these numbers: another batch, or another value of one key.
    """
    comparison = compared(config)
    if comparison is None or not comparison.is_published:
        return None
    (run,) = comparison.found.runs
    if not run.epochs_of_each:
        return None
    size = {"batch_size": config.batch.size, "num_samples": NUM_SAMPLES}
    # The runs counted whole epochs; their last one, like that of `config`, may end a few steps early.
    epochs = math.ceil(config.duration.samples(**size) / NUM_SAMPLES)
    reached = sum(one <= epochs for one in run.epochs_of_each)
    source = f"MLPerf's reference runs of {comparison.found.origin.name} with this recipe, in other code"
    return Chance(target=TARGET_TOP1, reached=reached, num=len(run.epochs_of_each), source=source)


def own_runs(config: RunConfig, *, other_seeds: bool = False) -> OwnRuns | None:
    """The finished runs in the storage of `config` with its recipe, of other names; None if there are none.

    The seed, and what changes results by rounding at most, may differ. Of the runs with one seed, the newest counts.
    `other_seeds`: without the runs that have the seed of `config`.
    """
    wanted = _values(config.recipe())
    results: dict[int, tuple[float, str]] = {}
    for run in finished(Path(config.storage)):
        top1 = (run.summary() or {}).get("top1")
        if run.name == config.name or top1 is None or not _may_be_same(run, config):
            continue
        recorded = newest_recipe(run)
        recipe = None if recorded is None else recipe_of(recorded[1])
        if recipe is not None and _values(recipe) == wanted:
            if not (other_seeds and recipe.seed == config.seed):
                results.setdefault(recipe.seed, (top1, run.name))
            if len(results) == _MOST_SEEDS:
                break
    if not results:
        return None
    return OwnRuns(top1=tuple(top1 for top1, _ in results.values()), names=tuple(name for _, name in results.values()))


def _may_be_same(run: RunDirectory, config: RunConfig) -> bool:
    """Whether config.yaml has the lines of the batch, the length and the network: parsing it takes 40 ms."""
    wanted = {f"  size: {config.batch.size}", f"duration: {config.duration}", f"  name: {config.model.name}"}
    try:
        return wanted <= set(read_whole(run.config).decode(errors="replace").splitlines())
    except OSError:
        return False


def _values(recipe: Recipe) -> dict[str, Any]:
    """The values of the keys on which the result depends."""
    flat = flatten(plain(settled(recipe)))
    return {key: value for key, value in flat.items() if key not in _IGNORED and not key.startswith(_IGNORED_SECTIONS)}

"""`launcher plan CONFIG --ablate`: find the bottleneck of a run on this machine, and measure its speed keys.

The run's own recipe, batch and data are measured in processes that write nothing into the run directory:

    whole        the run as configured: images are read and decoded, all workers train
    loader       images are read and decoded; nothing else
    synthetic    the same few images again and again, all workers: no loader
    one worker   one worker's per-worker batch, in a world of one: no loader, no communication

A run is at most as fast as the slowest of the last three. Speed keys are changed one at a time, with synthetic input.
If this machine cannot hold all workers, one worker with its per-worker batch is measured instead. A learning rate near
0 keeps the loss finite.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import count
from launcher.planning.measurement import Measurement, Speed, in_processes, recipe_of_one_worker, workers_here
from launcher.run.directory import RunDirectory
from resnet_dist.recipe import rules
from resnet_dist.recipe.schema import Recipe, SpeedRecipe

_ON_GPU_ONLY = ("cuda_graph", "copy_stream", "cudnn_benchmark")

Measure = Callable[[Measurement], Speed]


def lines(config: RunConfig, steps: int, measure: Callable[[Path, Measurement], Speed] | None = None) -> Iterator[str]:
    """Measure `steps` steps each; yields the result line by line. Raises UsageError for less than one step.

    `measure` gets a folder for indices; the default is `in_processes`.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: Allowed: a number from 1 up")
    here, why_fewer = workers_here(config)
    most, recipe = config.workers.most, config.recipe()
    single = recipe_of_one_worker(recipe, most)
    base = Measurement(
        kind="synthetic",
        recipe=recipe if here == most else single,
        workers=here,
        steps=steps,
        num_threads=config.resources.cpus_per_worker,
        on_gpu=config.resources.gpus_per_worker > 0,
    )
    with tempfile.TemporaryDirectory(prefix="ablate-") as folder:
        index = RunDirectory(Path(config.storage), config.name).index
        if index.is_dir():
            shutil.copytree(index, Path(folder, "index"))
        run = partial(measure or in_processes, Path(folder))
        yield ""
        yield f"  measured      {count(steps, 'step')} each, on {here} of {count(most, 'worker')}{why_fewer}"
        synthetic = run(base)
        yield from _ceilings(base, single, synthetic, run)
        yield from _speed_keys(base, synthetic, run)


def _ceilings(base: Measurement, single: Recipe, synthetic: Speed, measure: Measure) -> Iterator[str]:
    whole = measure(replace(base, kind="whole"))
    parts = {"loader": measure(replace(base, kind="loader")), "synthetic": synthetic}
    if base.workers > 1:
        one = measure(replace(base, recipe=single, workers=1))
        speed = None if one.images_per_s is None else one.images_per_s * base.workers
        parts[f"{base.workers} x one worker"] = Speed(speed, one.text)
    for name, result in {"whole": whole, **parts}.items():
        yield f"    {name:<16} {result}"
    known = {name: result.images_per_s for name, result in parts.items() if result.images_per_s is not None}
    if known and whole.images_per_s is not None:
        slowest = min(known, key=lambda name: known[name])
        yield f"    the slowest part is {slowest}; the whole reaches {whole.images_per_s / known[slowest]:.0%} of it"
        if whole.text:
            yield f"    {whole.text}"


def _speed_keys(base: Measurement, before: Speed, measure: Measure) -> Iterator[str]:
    yield "  speed keys    one changed at a time, with synthetic input"
    results: dict[str, Speed] = {}
    for key, value in changes(base.recipe.speed):
        recipe = replace(base.recipe, speed=replace(base.recipe.speed, **{key: value}))
        why_not = _why_not(key, recipe, base.workers, on_gpu=base.on_gpu)
        result = Speed(None, why_not) if why_not else measure(replace(base, recipe=recipe))
        results[f"{key}: {str(value).lower()}"] = result
    bases = [result.images_per_s for result in (before, measure(base)) if result.images_per_s is not None]
    if not bases:
        yield f"    unchanged        {before}"
        return
    unchanged = sum(bases) / len(bases)
    noise = (max(bases) - min(bases)) / unchanged
    yield f"    {'unchanged':<24} {unchanged:>10,.1f} images/s, measured twice, {noise:.1%} apart: less is noise"
    for name, result in results.items():
        ratio = "" if result.images_per_s is None else f", {result.images_per_s / unchanged:.3f} times"
        yield f"    {name:<24} {result}{ratio}"


def changes(speed: SpeedRecipe) -> Iterator[tuple[str, Any]]:
    """Every speed key with each value that it does not have."""
    for field in dataclasses.fields(SpeedRecipe):
        value = getattr(speed, field.name)
        if isinstance(value, bool):
            yield field.name, not value
        else:
            yield from ((field.name, other) for other in ("foreach", "fused", "loop") if other != value)


def _why_not(key: str, recipe: Recipe, workers: int, *, on_gpu: bool) -> str:
    if key in _ON_GPU_ONLY and not on_gpu:
        return "has no effect on a CPU"
    return "; ".join(str(problem) for problem in rules.problems(recipe, workers))

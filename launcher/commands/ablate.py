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
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from launcher.checks.children import Child, run_children
from launcher.checks.network import unused_port
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import count
from launcher.run.directory import RunDirectory
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import BatchRecipe, Recipe, SpeedRecipe

Kind = Literal["whole", "loader", "synthetic"]

WARM_UP = 3  # steps before the measured ones ...
WARM_UP_TO_CAPTURE = 14  # ... if the model is compiled or a CUDA graph captured
_TIMEOUT_S = 1800.0
_ON_GPU_ONLY = ("cuda_graph", "copy_stream", "cudnn_benchmark")


@dataclass(frozen=True)
class Measurement:
    """The speed of `steps` steps on `workers` processes."""

    kind: Kind
    recipe: Recipe
    workers: int
    steps: int
    num_threads: int  # of a worker
    on_gpu: bool

    @property
    def warm_up(self) -> int:
        """Steps that do not count."""
        speed = self.recipe.speed
        return WARM_UP_TO_CAPTURE if speed.compile or speed.cuda_graph else WARM_UP


@dataclass(frozen=True)
class Speed:
    """Images/s over all workers of a measurement, or None and why there is no result."""

    images_per_s: float | None
    text: str = ""

    def __str__(self) -> str:
        return f"{'-':>10} {self.text}" if self.images_per_s is None else f"{self.images_per_s:>10,.1f} images/s"


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


def workers_here(config: RunConfig) -> tuple[int, str]:
    """How many of the run's workers this machine can hold at once, all or one, and why not all."""
    most = config.workers.most
    if config.resources.gpus_per_worker:
        available, device = torch.cuda.device_count(), "GPU"
        if available == 0:
            raise UsageError("--ablate: the config requires a GPU per worker, and this machine has none")
    else:
        available, device = os.cpu_count() or 1, "CPU"
    return (most, "") if most <= available else (1, f": this machine has {count(available, device)}")


def recipe_of_one_worker(recipe: Recipe, world_size: int) -> Recipe:
    """The largest per-worker batch as a recipe; spans that cross workers become the worker's."""
    if world_size == 1:
        return recipe
    recipe = rules.settled(recipe)  # the span of the whole batch: auto would choose another one for a smaller batch
    num_micro_batches = recipe.batch.parts
    layout = BatchLayout.of(recipe, world_size)
    size = max(len(layout.worker_micro_batch(0, rank)) for rank in range(world_size))
    span = recipe.batch_norm.span
    stays = span == "auto" or (isinstance(span, int) and size % span == 0)  # auto: there is no batch norm
    return replace(
        recipe,
        batch=BatchRecipe(size=size * num_micro_batches, num_micro_batches=num_micro_batches),
        batch_norm=recipe.batch_norm if stays else replace(recipe.batch_norm, span="worker"),
    )


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


def in_processes(folder: Path, measurement: Measurement) -> Speed:
    """Measure in child processes, which take compiled code, pinned memory and CUDA graphs with them when they end."""
    (folder / "measurement").write_bytes(pickle.dumps(measurement))
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(unused_port()),
        "WORLD_SIZE": str(measurement.workers),
        "OMP_NUM_THREADS": str(measurement.num_threads),
    }
    children = [
        Child("launcher.commands.ablate_worker", {"folder": str(folder)}, {**group, "RANK": str(rank)})
        for rank in range(measurement.workers)
    ]
    answers = run_children(children, _TIMEOUT_S, end_with_first_failure=True)
    # The processes that are ended for the failure of another one have no message of their own.
    for answer in sorted((one for one in answers if isinstance(one, str)), key=lambda one: "no answer" in one):
        return Speed(None, f"failed: {answer}")
    first = answers[0]
    assert not isinstance(first, str)
    return Speed(first["images_per_s"], first["bottleneck"])

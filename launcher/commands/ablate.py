"""What holds a run up on this machine, and what each speed key is worth to it: `launcher plan CONFIG --ablate`.

Measured with the run's own recipe, batch and data, in processes of their own that leave nothing behind:

    whole        as the run would be: images read and decoded, all workers
    loader       images read and decoded, and nothing else
    synthetic    the same few images again and again, all workers: no loader
    one worker   one worker's share of them, in a world of one: no loader, no communication

A run is no faster than the lowest of the last three. Speed keys are changed one at a time on synthetic input. Where
this machine cannot hold all workers, one worker's share stands for the run. A learning rate near 0 keeps the loss
finite.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import BatchRecipe, Recipe, SpeedRecipe

Kind = Literal["whole", "loader", "synthetic"]

WARM_UP = 3  # steps before the first that counts ...
WARM_UP_TO_CAPTURE = 14  # ... and where something is compiled or captured
_TIMEOUT_S = 1800.0
_ON_GPU_ONLY = ("cuda_graph", "copy_stream", "cudnn_benchmark")
_WITH_WORKERS_ONLY = ("bucket_views", "static_graph", "cpu_affinity")


@dataclass(frozen=True)
class Measurement:
    """One figure to be measured by `workers` processes."""

    name: str
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
class Found:
    """What came out: images/s over all workers of the measurement, or why there is none."""

    images_per_s: float | None
    text: str = ""


def lines(config: RunConfig, steps: int) -> Iterator[str]:
    """Measure, and say what was found, a line each. `steps` count for each figure. Raises UsageError for no step."""
    if steps < 1:
        raise UsageError(f"--steps {steps}: Allowed: a number from 1 up")
    here, why_fewer = workers_here(config)
    most = config.workers.most
    with tempfile.TemporaryDirectory(prefix="ablate-") as name:
        folder = Path(name)
        known = RunDirectory(Path(config.storage), config.name).index
        if known.is_dir():
            shutil.copytree(known, folder / "index")
        yield ""
        yield f"  measured      {steps} steps each, on {here} of {most} workers{why_fewer}"
        yield from _ceilings(config, here, steps, folder)
        yield from _speed_keys(config, here, steps, folder)


def workers_here(config: RunConfig) -> tuple[int, str]:
    """How many of the run's workers this machine can hold at once: all or one; and why not all."""
    most = config.workers.most
    if config.resources.gpus_per_worker:
        room, what = torch.cuda.device_count(), "GPU"
        if room == 0:
            raise UsageError("--ablate: the config asks for a GPU a worker, and this machine has none")
    else:
        room, what = max(1, (os.cpu_count() or 1)), "CPU"
    if most <= room:
        return most, ""
    return 1, f": this machine has {room} {what}{'s' * (room > 1)}"


def alone(recipe: Recipe, world_size: int) -> Recipe:
    """One worker's share as a recipe of its own; spans that others have a part in become the worker's."""
    if world_size == 1:
        return recipe
    recipe = rules.settled(recipe)  # a span for the whole batch: auto would choose another one for the share
    parts = recipe.batch.parts
    layout = BatchLayout(recipe.batch.size, parts, world_size)
    share = max(len(layout.share(0, rank).own) for rank in range(world_size))
    span = recipe.batch_norm.span
    stays = isinstance(span, int) and share % span == 0
    return replace(
        recipe,
        batch=BatchRecipe(size=share * parts, num_micro_batches=parts),
        batch_norm=recipe.batch_norm if stays else replace(recipe.batch_norm, span="worker"),
    )


def _ceilings(config: RunConfig, here: int, steps: int, folder: Path) -> Iterator[str]:
    recipe = config.recipe()
    most = config.workers.most
    own = recipe if here == most else alone(recipe, most)
    found: dict[str, Found] = {}
    for name in ("whole", "loader", "synthetic"):
        found[name] = _run(_measurement(config, name, name, own, here, steps), folder)
    if here > 1:
        single = _run(_measurement(config, "one worker", "synthetic", alone(recipe, most), 1, steps), folder)
        speed = None if single.images_per_s is None else single.images_per_s * here
        found[f"{here} x one worker"] = Found(speed, single.text)
    for name, result in found.items():
        yield f"    {name:<16} {_shown(result)}"
    ceilings = {name: result.images_per_s for name, result in found.items() if name != "whole"}
    known = {name: speed for name, speed in ceilings.items() if speed is not None}
    whole = found["whole"].images_per_s
    if known and whole is not None:
        lowest = min(known, key=lambda name: known[name])
        yield f"    the lowest ceiling is {lowest}; the whole reaches {whole / known[lowest]:.0%} of it"
    if found["whole"].text:
        yield f"    {found['whole'].text}"


def _speed_keys(config: RunConfig, here: int, steps: int, folder: Path) -> Iterator[str]:
    recipe = config.recipe() if here == config.workers.most else alone(config.recipe(), config.workers.most)
    yield "  speed keys    one changed at a time, on synthetic input"
    before = _run(_measurement(config, "before", "synthetic", recipe, here, steps), folder)
    results: list[tuple[str, Found]] = []
    for key, value in changes(recipe.speed):
        changed = replace(recipe, speed=replace(recipe.speed, **{key: value}))
        reason = _why_not(key, changed, here, on_gpu=bool(config.resources.gpus_per_worker))
        measurement = _measurement(config, key, "synthetic", changed, here, steps)
        shown = str(value).lower()
        results.append((f"{key}: {shown}", Found(None, reason) if reason else _run(measurement, folder)))
    after = _run(_measurement(config, "after", "synthetic", recipe, here, steps), folder)
    bases = [result.images_per_s for result in (before, after) if result.images_per_s is not None]
    if not bases:
        yield f"    as it is         {_shown(before)}"
        return
    base = sum(bases) / len(bases)
    noise = (max(bases) - min(bases)) / base
    yield f"    {'as it is':<24} {base:>10,.1f} images/s, twice, {noise:.1%} apart: less than that says nothing"
    for name, result in results:
        ratio = "" if result.images_per_s is None else f", {result.images_per_s / base:.3f} times"
        yield f"    {name:<24} {_shown(result)}{ratio}"


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
        return "does nothing on a CPU"
    if key in _WITH_WORKERS_ONLY and workers == 1:
        return "does nothing with one worker"
    return "; ".join(str(problem) for problem in rules.problems(recipe, workers))


def _measurement(config: RunConfig, name: str, kind: Kind, recipe: Recipe, workers: int, steps: int) -> Measurement:
    num_threads = config.resources.cpus_per_worker
    return Measurement(name, kind, recipe, workers, steps, num_threads, bool(config.resources.gpus_per_worker))


def _shown(found: Found) -> str:
    if found.images_per_s is None:
        return f"{'-':>10} {found.text}"
    return f"{found.images_per_s:>10,.1f} images/s"


def _run(measurement: Measurement, folder: Path) -> Found:
    """Measure in processes of their own: what is compiled, pinned or captured there ends with them."""
    (folder / "measurement").write_bytes(pickle.dumps(measurement))
    (folder / "found.json").unlink(missing_ok=True)
    outside = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={measurement.workers}"]
    command = [sys.executable, *torchrun, "-m", "launcher.commands.ablate_worker", str(folder)]
    try:
        done = subprocess.run(
            command,
            env={name: value for name, value in os.environ.items() if name not in outside},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Found(None, f"not done after {_TIMEOUT_S:g} s")
    if done.returncode or not (folder / "found.json").exists():
        return Found(None, f"failed: {_last_error(done.stderr.splitlines())}")
    found = json.loads((folder / "found.json").read_text())
    return Found(found["images_per_s"], found["verdict"])


def _last_error(output: Sequence[str]) -> str:
    errors = [line.partition("]:")[2].strip() or line.strip() for line in output if "Error" in line]
    ours = [line for line in errors if "ChildFailedError" not in line]
    return ours[-1] if ours else "without a word"

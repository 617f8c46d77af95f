"""The speed of a recipe on this machine, measured in child processes that write nothing into the run directory.

    whole        the run as configured: images are read and decoded, all workers train
    loader       images are read and decoded; nothing else
    synthetic    the same few images again and again, all workers: no loader

A learning rate near 0 keeps the loss finite.
"""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launcher.checks.children import Child, run_children
from launcher.checks.network import unused_port
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import count
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import BatchRecipe, Recipe

Kind = Literal["whole", "loader", "synthetic"]

WARM_UP = 3  # steps before the measured ones ...
WARM_UP_TO_CAPTURE = 14  # ... if the model is compiled or a CUDA graph captured
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Measurement:
    """The speed of `steps` steps on `workers` processes, or of the steps in `seconds`."""

    kind: Kind
    recipe: Recipe
    workers: int
    steps: int
    num_threads: int  # of a worker
    on_gpu: bool
    seconds: float | None = None  # of all, also start and evaluation, in place of `steps` steps

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
    step_times_s: tuple[float, ...] = ()  # without warm-up
    start_s: float = 0.0  # from the start of the processes to the first step
    evaluation_s: float | None = None  # of one image on one worker; None if it was not measured
    num_samples: int = 0  # of the training split
    num_val: int = 0

    def __str__(self) -> str:
        return f"{'-':>10} {self.text}" if self.images_per_s is None else f"{self.images_per_s:>10,.1f} images/s"


def workers_here(config: RunConfig) -> tuple[int, str]:
    """How many of the run's workers this machine can hold at once, all or one, and why not all."""
    most = config.workers.most
    if config.resources.gpus_per_worker:
        import torch  # seconds

        available, device = torch.cuda.device_count(), "GPU"
        if available == 0:
            raise UsageError("the config requires a GPU per worker, and this machine has none: measure on one that has")
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
    return with_batch(recipe, BatchRecipe(size=size * num_micro_batches, num_micro_batches=num_micro_batches))


def with_batch(recipe: Recipe, batch: BatchRecipe) -> Recipe:
    """`recipe` with another batch for one worker; a span of batch norm that does not divide it becomes the worker's."""
    span, size = recipe.batch_norm.span, batch.size // batch.parts
    stays = span == "auto" or (isinstance(span, int) and size % span == 0)  # auto: there is no batch norm
    norm = recipe.batch_norm if stays else replace(recipe.batch_norm, span="worker")
    return replace(recipe, batch=batch, batch_norm=norm)


def in_processes(folder: Path, measurement: Measurement) -> Speed:
    """Measure in child processes, which take compiled code, pinned memory and CUDA graphs with them when they end."""
    (folder / "measurement").write_bytes(pickle.dumps(measurement))
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(unused_port()),
        "WORLD_SIZE": str(measurement.workers),
        "OMP_NUM_THREADS": str(measurement.num_threads),
    }
    argument = {"folder": str(folder), "started": time.time()}
    children = [
        Child("launcher.planning.measurement_worker", argument, {**group, "RANK": str(rank)})
        for rank in range(measurement.workers)
    ]
    answers = run_children(children, _TIMEOUT_S, end_with_first_failure=True)
    # The processes that are ended for the failure of another one have no message of their own.
    for answer in sorted((one for one in answers if isinstance(one, str)), key=lambda one: "no answer" in one):
        return Speed(None, f"failed: {answer}")
    first = answers[0]
    assert not isinstance(first, str)
    times_s = tuple(first.pop("step_times_s"))
    return Speed(first.pop("images_per_s"), first.pop("bottleneck"), times_s, **first)

"""What a run has to do: steps, images, operations, evaluations, saves. Computed without torch and without images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import RunConfig, resolve_place
from resnet_dist.recipe.durations import Every, resolved
from resnet_dist.recipe.network_cost import num_weights, training_flops
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import plain

FORWARD_PART = 1 / 3  # of the operations of a training step: `resnet_dist.recipe.network_cost`
_VAL_PART = 0.25  # assumption for the size of an unknown val split, as a part of the training split
_IMAGENET, _IMAGENET_VAL = 1_281_167, 50_000

# Sections and keys that do not change how long a step takes, and whether the machine or the program is another one.
_NOT_OF_SPEED = (
    *("name", "storage", "seed", "duration", "schedule", "stop_at", "checkpoint", "faults", "notify", "preemption"),
    *("log", "cluster", "schema", "evaluate"),
)
_NOT_OF_DATA = ("root", "num_samples", "mean", "std", "known_bad", "classes", "subset", "cache")
_NOT_OF_MODEL = ("initialisation", "zero_gamma", "weights")


@dataclass(frozen=True, kw_only=True)
class Work:
    """The amounts of one run. Images and operations are those of the worker that has the most."""

    workers: int
    steps: int
    batch_size: int
    worker_images: int  # in a step
    micro_batches: int  # in a step
    flops: float | None  # of an image, forward and backward, mean over the steps; None for a user's model
    weights: int | None  # numbers that workers exchange in a step; None for a user's model
    decodes: bool  # whether images are read and decoded
    evaluations: int
    evaluated_images: int  # by a worker, in all evaluations
    evaluation_flops: float | None  # of an image
    saves: int

    @property
    def step_flops(self) -> float | None:
        """Operations of a worker in a step."""
        return None if self.flops is None else self.flops * self.worker_images


def work_of(
    config: RunConfig,
    num_samples: int,
    num_val: int | None = None,
    *,
    steps: int | None = None,
    evaluations: int | None = None,
) -> Work:
    """The work of `config` with `num_samples` training images, on its largest number of workers.

    `steps` and `evaluations` are those of a run that ended earlier.
    """
    workers = config.workers.most
    batch, size = config.batch, {"batch_size": config.batch.size, "num_samples": num_samples}
    whole = resolved(config, config.duration)
    steps = max(whole.duration.steps(**size) if steps is None else steps, 1)
    events = {
        "evaluations": Every(whole.evaluate.every.samples(**size), batch.size),
        "saves": Every(whole.checkpoint.every.samples(**size), batch.size),
    }
    numbers = {name: every.times_within(steps - 1) + 1 for name, every in events.items()}  # one at the end
    if config.evaluate.beside:
        numbers["evaluations"] = 1
    if evaluations is not None:
        numbers["evaluations"] = evaluations
    images = assumed_val(num_samples) if num_val is None else num_val
    images += num_samples if config.evaluate.train else 0
    evaluation_flops = training_flops(config.model, config.evaluation_data.resolution)
    return Work(
        workers=workers,
        steps=steps,
        batch_size=batch.size,
        worker_images=math.ceil(batch.size / batch.parts / workers) * batch.parts,
        micro_batches=batch.parts,
        flops=_mean_flops(whole, Resolutions.of(whole.data, **size), steps),
        weights=num_weights(config.model),
        decodes=config.data.source != "synthetic",
        evaluated_images=math.ceil(images / workers) * numbers["evaluations"],
        evaluation_flops=None if evaluation_flops is None else evaluation_flops * FORWARD_PART,
        **numbers,
    )


def _mean_flops(config: RunConfig, sizes: Resolutions, steps: int) -> float | None:
    ends = [*sizes.first_steps[1:], steps]
    parts = [max(min(end, steps) - first, 0) for first, end in zip(sizes.first_steps, ends, strict=True)]
    flops = [training_flops(config.model, pixels) for pixels in sizes.pixels]
    known = [of_part for of_part in flops if of_part is not None]
    if len(known) < len(flops):
        return None
    return sum(of_part * num for of_part, num in zip(known, parts, strict=True)) / steps


def assumed_val(num_samples: int) -> int:
    """The assumed size of a val split that is not on this machine; ImageNet's is known."""
    return _IMAGENET_VAL if num_samples == _IMAGENET else math.ceil(num_samples * _VAL_PART)


def configuration(config: RunConfig) -> str:
    """A key that is the same for configs whose steps take the same time on the same machines, 16 hex digits.

    Their name, seed, duration, schedule, images and evaluations may differ. `auto` is the place that it is here.
    """
    parts = plain(settled(config))  # as a run records it
    kept = {key: value for key, value in parts.items() if key not in _NOT_OF_SPEED}
    kept["data"] = {key: value for key, value in parts["data"].items() if key not in _NOT_OF_DATA}
    kept["model"] = {key: value for key, value in parts["model"].items() if key not in _NOT_OF_MODEL}
    kept["optimizer"] = parts["optimizer"]["name"]
    kept["nodes"], kept["place"] = config.cluster.nodes, _place(config)
    return _key(kept)


def program(config: RunConfig) -> str:
    """A key of what must be equal for the speed of one run to say something about that of another, 16 hex digits."""
    kept = {"precision": config.precision, "engine": config.engine.name, "deterministic": config.deterministic}
    others = {"resources": plain(config.resources), "speed": plain(config.speed), "place": _place(config)}
    return _key({**kept, **others})


def _place(config: RunConfig) -> str:
    return config.place if config.place != "auto" else resolve_place("auto")


def _key(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

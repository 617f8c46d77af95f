"""The numbers of a run's records as named points of charts, the same in TensorBoard and in Weights & Biases.

The part of a name before the first slash is the group in which a chart is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

FINAL = "evaluation/top-1"  # the result of a run

_GIB = 2**30

_TRAIN = {
    "loss": "train/loss",
    "top1": "train/top-1",
    "gradient_norm": "train/gradient norm",
    "num_left_out": "train/left out samples",
    "learning_rate": "optimizer/learning rate",
    "trust_ratio_min": "optimizer/trust ratio/smallest",
    "trust_ratio_median": "optimizer/trust ratio/median",
    "trust_ratio_max": "optimizer/trust ratio/largest",
    "loss_scale": "optimizer/loss scale",
    "num_skipped": "optimizer/skipped steps",
    "images_per_s": "speed/images per s",
    "step_time_s": "speed/seconds per step",
    "data_wait_s": "speed/data wait in s",
    "memory_bytes": "memory/host in GiB",
    "gpu_memory_bytes": "memory/GPU peak in GiB",
}
_EVALUATION = {
    "top1": FINAL,
    "top5": "evaluation/top-5",
    "loss": "evaluation/loss",
    "train_top1": "evaluation/top-1 of the training split",
    "train_loss": "evaluation/loss of the training split",
    "num_nonfinite": "evaluation/samples that are not finite",
    "num_bad": "evaluation/broken images",
    "time_s": "speed/seconds per evaluation",
}
_NAMES: Mapping[str, Mapping[str, str]] = {"train": _TRAIN, "eval": _EVALUATION}
_ONLY_IF_ANY = ("num_nonfinite", "num_left_out", "num_skipped")  # a chart that is always 0 says nothing


def points(record: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The (name, value) pairs of a record that are worth a chart; values are finite.

    >>> list(points({"kind": "train", "step": 3, "loss": 2.5, "sample_ids": 77, "memory_bytes": 2**29}))
    [('train/loss', 2.5), ('memory/host in GiB', 0.5)]
    >>> list(points({"kind": "layers", "step": 3, "layers": {"conv1": {"gradient_norm": 0.25}}}))
    [('layers: gradient norm/conv1', 0.25)]
    """
    for name, value in _named(record):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, value


def _named(record: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, name in _NAMES.get(str(record["kind"]), {}).items():
        value = record.get(key)
        if key.endswith("_bytes") and isinstance(value, int):
            value = value / _GIB
        if value or key not in _ONLY_IF_ANY:
            yield name, value
    metrics, layers = record.get("metrics"), record.get("layers")
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        yield f"evaluation/{name}", value
    for layer, numbers in layers.items() if isinstance(layers, Mapping) else ():
        for key, value in numbers.items():
            yield f"layers: {key.replace('_', ' ')}/{layer}", value

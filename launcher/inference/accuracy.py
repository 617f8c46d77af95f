"""The accuracy of an evaluation, with all that belongs to the number. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launcher.formatting import count
from resnet_dist.input_files import printable
from resnet_dist.recipe.schema import Recipe

Z_95 = 1.959964  # 0.975 quantile of the normal distribution: intervals of 95 %
_WEIGHTS = {"model": "weights of the step", "ema": "moving average of the weights"}


def weights_in_words(weights: str) -> str:
    """Which weights were evaluated or exported: "model" or "ema"."""
    return _WEIGHTS.get(weights, printable(weights))


def wilson_interval(fraction: float, num_samples: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy: those on all images of this kind that `num_samples` of them do not contradict.

    Source: Wilson 1927; it holds near 0 and 1 and for few images, where the normal approximation does not.

    >>> [round(bound, 4) for bound in wilson_interval(0.98, 100)]
    [0.93, 0.9945]
    """
    n, p = num_samples, fraction
    center = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    return max(min(center - half, p), 0.0), min(max(center + half, p), 1.0)


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of accuracies as text.

    >>> interval_text((0.93, 0.9944))
    '93.0 to 99.4 %'
    """
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def label_of(
    *,
    num_samples: int | None,
    resolution: object,
    crop: object,
    weights: object,
    precision: object,
    batch_norm_steps: int = 0,
    num_bad: int = 0,
    noun: str = "val image",
) -> str:
    """What an accuracy was measured on and with, as text: the parts as in `Accuracy`; None: it is not recorded.

    >>> label_of(num_samples=355, resolution=32, crop=0.875, weights="ema", precision="float32", num_bad=2)
    '355 val images without 2 broken ones at 32 px, central crop 0.875, moving average of the weights, float32'
    """
    images = f"the {noun}s" if num_samples is None else count(num_samples, noun)
    images += f" without {count(num_bad, 'broken one')}" if num_bad else ""
    parts = [
        f"{images}, resolution not recorded" if resolution is None else f"{images} at {resolution} px",
        f"central crop {crop:g}" if isinstance(crop, int | float) else "crop not recorded",
        weights_in_words(weights) if isinstance(weights, str) else "weights not recorded",
        "precision not recorded" if precision is None else f"{precision}",
    ]
    if batch_norm_steps:
        parts.append(f"batch norm's statistics of {count(batch_norm_steps, 'step')}")
    return ", ".join(parts)


@dataclass(frozen=True)
class Accuracy:
    """An evaluation on the val images: top1 and top5 are fractions of them."""

    top1: float
    top5: float | None  # None with fewer than 6 classes
    loss: float | None
    num_samples: int | None  # val images; None if it was not recorded
    step: int  # completed steps
    resolution: int  # height and width of the network's input, in pixels
    crop: float  # side of the central crop / the image's shorter side
    weights: str  # "model": those of the step; "ema": their moving average
    precision: str
    batch_norm_steps: int  # whose batches gave batch norm's statistics; 0: running statistics

    @classmethod
    def of(cls, record: Mapping[str, Any], step: int, recipe: Recipe) -> Accuracy | None:
        """The accuracy in an eval record, or in the metrics of a checkpoint; None without a finite top-1."""
        top1, top5, loss = (_number(record.get(key)) for key in ("top1", "top5", "loss"))
        if top1 is None:
            return None
        data, usual = recipe.evaluation_data, "model" if recipe.ema.decay is None else "ema"
        num_samples, weights = record.get("num_samples"), record.get("weights")
        return cls(
            top1=top1,
            top5=top5,
            loss=loss,
            num_samples=num_samples if isinstance(num_samples, int) else None,
            step=step,
            resolution=data.resolution,
            crop=data.evaluation_crop,
            weights=weights if isinstance(weights, str) else usual,
            precision=recipe.precision,
            batch_norm_steps=recipe.evaluate.precise_batch_norm,
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The `wilson_interval` of top1; None if the number of images is unknown."""
        known = self.num_samples is not None and self.num_samples > 0 and 0 <= self.top1 <= 1
        return wilson_interval(self.top1, self.num_samples) if known and self.num_samples is not None else None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        interval = None if self.interval is None else list(self.interval)
        return {**asdict(self), "top1_interval": interval, "label": self.label}

    @property
    def label(self) -> str:
        """What the number was measured on and with: see `label_of`."""
        return label_of(
            num_samples=self.num_samples,
            resolution=self.resolution,
            crop=self.crop,
            weights=self.weights,
            precision=self.precision,
            batch_norm_steps=self.batch_norm_steps,
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None

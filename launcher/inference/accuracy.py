"""The accuracy of an evaluation, with all that belongs to the number. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.formatting import count
from resnet_dist.input_files import printable
from resnet_dist.recipe.schema import Recipe

_WEIGHTS = {"model": "weights of the step", "ema": "moving average of the weights"}


def weights_in_words(weights: str) -> str:
    """Which weights were evaluated or exported: "model" or "ema"."""
    return _WEIGHTS.get(weights, printable(weights))


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
    def label(self) -> str:
        """What the number was measured on and with.

        >>> Accuracy(0.5, None, None, 355, 8, 32, 0.875, "ema", "float32", 0).label
        '355 val images at 32 px, central crop 0.875, moving average of the weights, float32'
        """
        images = "the val images" if self.num_samples is None else count(self.num_samples, "val image")
        at = f"at {self.resolution} px, central crop {self.crop:g}"
        steps = f", batch norm's statistics of {count(self.batch_norm_steps, 'step')}" if self.batch_norm_steps else ""
        return f"{images} {at}, {weights_in_words(self.weights)}, {self.precision}{steps}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None

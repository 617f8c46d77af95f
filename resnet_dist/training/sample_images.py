"""Images of the first step as the network sees them, to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.schema import DataRecipe

Captioned = tuple[str, NDArray[Any]]  # an image, uint8 [height, width, 3], and its caption
ShowImages = Callable[[int, list[Captioned]], None]  # called with the step


class SampleImages:
    """Passes batches through `to_device`, and the first `num` images of the first step to `show`.

    They are the images of this worker that are trained on: cropped, flipped, augmented, erased and mixed. Nothing else
    is read, drawn or changed. `classes`: names by label. `num_micro_batches`: those of a step.
    """

    def __init__(
        self,
        to_device: Callable[[HostBatch], MicroBatch],
        data: DataRecipe,
        classes: Sequence[str],
        num: int,
        num_micro_batches: int,
        show: Callable[[list[Captioned]], None],
    ) -> None:
        self._to_device, self._data, self._classes, self._show = to_device, data, classes, show
        self._wanted, self._shown, self._micro_batches_left = num, 0, num_micro_batches

    def __call__(self, batch: HostBatch) -> MicroBatch:
        """`batch` on the device."""
        moved = self._to_device(batch)
        if self._micro_batches_left and self._shown < self._wanted:
            self._show(list(self._captioned(moved)))
        self._micro_batches_left = max(self._micro_batches_left - 1, 0)
        return moved

    def _captioned(self, batch: MicroBatch) -> Iterator[Captioned]:
        num = min(self._wanted - self._shown, len(batch.labels))
        mean, std = (torch.tensor(values)[:, None, None] for values in (self._data.mean, self._data.std))
        for image, label in zip(batch.images[:num].float().cpu(), batch.labels[:num].cpu(), strict=True):
            self._shown += 1
            pixels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
            yield f"{self._shown:02d}: {self._caption(label)}", np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())

    def _caption(self, label: Tensor) -> str:
        if label.ndim == 0:
            return self._name(int(label))
        shares, labels = label.topk(min(2, len(label)))  # mixup and CutMix mix two images
        parts = [(float(share), int(number)) for share, number in zip(shares, labels, strict=True) if share >= 0.005]
        return " + ".join(f"{share:.2f} {self._name(number)}" for share, number in parts)

    def _name(self, label: int) -> str:
        return self._classes[label] if label < len(self._classes) else str(label)

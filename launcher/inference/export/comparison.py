"""The outputs of an exported model compared with those of ours, on random and on val images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from launcher.errors import UsageError
from launcher.formatting import count, printable_lines
from launcher.inference.trained import Saved
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.index.made import index_file
from resnet_dist.data.index.table import Index
from resnet_dist.data.loader import evaluation_batches, normalise
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import TrainingError
from resnet_dist.inference import TrainedModel
from resnet_dist.recipe.schema import DataRecipe

# Of the largest output. Other kernels round differently, by about 1e-6; another epsilon or layer changes more.
TOLERANCE = 1e-4
NUM_RANDOM = 4  # images of random pixels
NUM_VAL = 8
_SIZES = (1, 2)  # of further batches: a program may have been made for one size

Outputs = Callable[[Tensor], Tensor]  # images float32 [n, 3, height, width] -> logits [n, classes]


@dataclass(frozen=True)
class Images:
    """Images to compare on, normalised: float32 [n, 3, resolution, resolution]."""

    random: Tensor
    val: Tensor | None
    why_no_val: str = ""

    def all(self) -> Tensor:
        """The random images, then those of val."""
        return self.random if self.val is None else torch.cat((self.random, self.val))


@dataclass(frozen=True)
class Agreement:
    """How well two models agree."""

    largest_difference: float  # of two outputs
    largest_output: float  # its absolute value
    num_random: int  # images
    num_val: int
    why_no_val: str

    @property
    def where(self) -> str:
        """The images, in words.

        >>> Agreement(2e-6, 8.13, 4, 0, "they are not here").where
        'on 4 random images (no val images: they are not here)'
        """
        val = f" and {self.num_val} val images" if self.num_val else f" images (no val images: {self.why_no_val})"
        return f"on {self.num_random} random{val}"

    @property
    def difference(self) -> str:
        """The difference, in words.

        >>> Agreement(2e-6, 8.13, 4, 0, "they are not here").difference
        'largest difference 2e-06 of outputs up to 8.13'
        """
        return f"largest difference {self.largest_difference:.2g} of outputs up to {self.largest_output:.3g}"


def images_for(saved: Saved) -> Images:
    """Random images, and images of the run's val split if they are on this machine."""
    data = saved.recipe.evaluation_data
    generator = torch.Generator().manual_seed(0)
    size = (NUM_RANDOM, 3, data.resolution, data.resolution)
    pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    random = normalise(pixels, data.mean, data.std, torch.float32)
    try:
        return Images(random, _val_images(saved, data))
    except TrainingError as error:
        return Images(random, None, str(error).splitlines()[0])


def _val_images(saved: Saved, data: DataRecipe) -> Tensor:
    """A few images from all over the val split. Raises TrainingError if there are none."""
    if saved.run is None:
        raise TrainingError("the checkpoint is outside of a run directory")
    if "://" in data.root:
        raise TrainingError("they are in an object store")
    index = Index.load(index_file(saved.run.index, "val")).with_exif(data.exif)
    num = min(NUM_VAL, len(index))
    chosen = index.take(np.linspace(0, len(index) - 1, num).astype(np.int64))
    batches = evaluation_batches(chosen, files_of(chosen, data), 1, 0, num, data, CpuDecoder(1, 0))
    batch = next(iter(batches))
    good = batch.good()
    if not len(good):
        raise TrainingError("they are broken")
    return normalise(batch.images[good], data.mean, data.std, torch.float32).contiguous()


@torch.no_grad()
def compared(trained: TrainedModel, outputs: Outputs, images: Images, what: str) -> Agreement:
    """Compare `outputs` with those of `trained`, in batches of several sizes.

    `what` names the other model in messages. Raises UsageError if they differ by more than `TOLERANCE`, relative to the
    largest output, or if an output is not finite.
    """
    everything = images.all()
    dtype = next(trained.model.parameters(), everything).dtype
    largest = difference = 0.0
    for size in (len(everything), *_SIZES):
        batch = everything[:size]
        try:
            expected, found = trained.model(batch.to(dtype)).double(), outputs(batch).double()
        except Exception as error:  # of the user's model, or of the target
            problem = f"cannot be called with {count(size, 'image')}: {printable_lines(error)[0]}"
            raise UsageError(f"{what}: the model {problem}: not written") from error
        if found.shape != expected.shape:
            problem = f"returns {list(found.shape)} for {size} images, not {list(expected.shape)}"
            raise UsageError(f"{what}: the exported model {problem}: not written")
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((found - expected).abs().nan_to_num(nan=math.inf).max()))
    if not math.isfinite(largest):
        raise UsageError(f"{trained.checkpoint}: its outputs are not finite. Allowed: an earlier checkpoint of the run")
    if difference > TOLERANCE * largest:
        problem = f"its outputs differ by up to {difference:.3g} from ours, which are up to {largest:.3g}"
        raise UsageError(f"{what}: {problem}: not written. Allowed: {TOLERANCE * largest:.3g}")
    num_val = 0 if images.val is None else len(images.val)
    return Agreement(difference, largest, len(images.random), num_val, images.why_no_val)

"""Changes the pixels of training images after any decoder: colour jitter, then a policy or a user's function."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data import random_bits
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.decoding.threads import single_threads
from resnet_dist.data.policies import ColorJitter, Policy, RandAugment, Steps, TrivialAugment, apply
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import function_for, is_reference
from resnet_dist.recipe.schema import DataRecipe

# images uint8 [n, 3, height, width], positions int64 [n] -> the changed images
_OfBatch = Callable[[Tensor, NDArray[np.int64]], Tensor]


def augmentation_of(recipe: DataRecipe, *, seed: int, device: torch.device, num_threads: int) -> Augmentation | None:
    """The augmentation of training images on a worker; None if the recipe has none.

    Raises RecipeError for a user's function that cannot be loaded or called.
    """
    name, magnitude, num_ops = recipe.augmentation.name, recipe.augmentation.magnitude, recipe.augmentation.num_ops
    policies: list[Policy] = []
    of_batch: _OfBatch | None = None
    if recipe.color_jitter > 0:
        policies.append(ColorJitter(recipe.color_jitter, seed))
    if name == "randaugment":
        # torchvision's defaults
        num_ops, magnitude = 2 if num_ops is None else num_ops, 9 if magnitude is None else magnitude
        policies.append(RandAugment(num_ops, magnitude, seed))
    elif name == "trivialaugment":
        policies.append(TrivialAugment(seed))
    elif is_reference(name):
        arguments = recipe.augmentation.arguments
        function = function_for("data.augmentation.name", name, "images", "uniform", **arguments)
        of_batch = _users(name, partial(function, **arguments), seed)
    if not policies and of_batch is None:
        return None
    return Augmentation(policies, of_batch, device, num_threads)


class Augmentation:
    """Changes decoded images in `num_threads` threads, or on the GPU, one batch ahead of the consumer.

    The pixels of an image depend on its decoded pixels, its position and the seed: not on the number of threads.
    """

    def __init__(
        self, policies: list[Policy], of_batch: _OfBatch | None, device: torch.device, num_threads: int
    ) -> None:
        self._policies, self._of_batch, self._num_threads = policies, of_batch, num_threads
        # Of its own, so that nothing waits for the training step that the GPU computes meanwhile.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, decoded: Generator[Decoded, None, None]) -> Generator[Decoded, None, None]:
        """Yield what `decoded` yields, with changed images. Closing the generator early ends its threads.

        `decoded` runs in a thread of its own. Raises RecipeError if a user's function returns something else than it
        should.
        """
        pool = single_threads(self._num_threads, "augment")
        ahead = ThreadPoolExecutor(1, thread_name_prefix="augment-batch")
        try:
            coming = ahead.submit(self._next, decoded, pool)
            while (found := coming.result()) is not None:
                coming = ahead.submit(self._next, decoded, pool)
                changed, ready = found
                if ready is not None:
                    torch.cuda.current_stream().wait_event(ready)
                    changed.images.record_stream(torch.cuda.current_stream())
                yield changed
        finally:
            ahead.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(
        self, decoded: Generator[Decoded, None, None], pool: ThreadPoolExecutor
    ) -> tuple[Decoded, torch.cuda.Event | None] | None:
        """The next request with changed images, and the event after which they can be used; None at the end."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            following = next(decoded, None)  # a decoder on the GPU takes the stream of this thread
            if following is None:
                return None
            images, positions = following.images, following.request.positions
            self._change(images, positions, pool)
            if self._of_batch is not None:
                images = self._of_batch(images, positions)
                if self._stream is not None and not images.is_cuda:
                    images = images.pin_memory()  # in this thread; what is pinned already remains as it is
            ready = self._stream.record_event() if self._stream is not None and images.is_cuda else None
            return dataclasses.replace(following, images=images), ready

    def _change(self, images: Tensor, positions: NDArray[np.int64], pool: ThreadPoolExecutor) -> None:
        """Apply the policies to `images` in place."""
        if not self._policies:
            return
        chosen = zip(*(policy.steps(positions, images.shape[-1]) for policy in self._policies), strict=True)
        steps: list[Steps] = [list(itertools.chain(*own)) for own in chosen]

        def change(number: int) -> None:
            images[number] = apply(images[number].contiguous(), steps[number])

        run = map if images.is_cuda else pool.map
        list(run(change, range(len(images))))  # raises what a thread has raised


def _users(name: str, function: Callable[..., object], seed: int) -> _OfBatch:
    """A user's function of images and random numbers as one of images and positions, with a check of its result."""

    def of_batch(images: Tensor, positions: NDArray[np.int64]) -> Tensor:
        num_drawn = 0

        def uniform(num: int) -> Tensor:
            nonlocal num_drawn
            first, num_drawn = num_drawn, num_drawn + num
            drawn = random_bits.uniform(seed, positions, random_bits.Purpose.AUGMENTATION, num_drawn)[:, first:]
            return torch.from_numpy(drawn).to(images.device)

        changed = function(images, uniform)
        wanted = (images.shape, images.dtype, images.device)
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype, changed.device) != wanted:
            found = type(changed).__name__
            if isinstance(changed, Tensor):
                found = f"{changed.dtype} {list(changed.shape)} on {changed.device}"
            allowed = f"images as it gets them: {images.dtype} {list(images.shape)} on {images.device}"
            raise RecipeError("data.augmentation.name", f"{name!r} returned {found}", allowed)
        return changed.contiguous(memory_format=torch.channels_last)

    return of_batch

"""Augmentation of decoded images, in any number of threads and after any decoder."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.data.policies import ColorJitter, RandAugment, apply
from resnet_dist.data.random_bits import Purpose
from resnet_dist.data.random_bits import uniform as random_numbers
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import AugmentationRecipe, DataRecipe

CPU = torch.device("cpu")
SEED, SIZE = 11, 24
PLAIN = DataRecipe(root="none", resolution=SIZE)
BOTH = replace(PLAIN, color_jitter=0.4, augmentation=AugmentationRecipe(name="randaugment", magnitude=12, num_ops=3))


class NoFiles:
    def name(self, sample_id: int) -> str:
        raise NotImplementedError

    def read(self, sample_id: int) -> bytes:
        raise NotImplementedError


def images_of(positions: np.ndarray) -> Tensor:
    """uint8 [n, 3, SIZE, SIZE], channels-last, as decoders return them."""
    generator = torch.Generator().manual_seed(int(positions[0]))
    pixels = torch.randint(256, (len(positions), SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


def decoded(num_batches: int = 3, size: int = 5) -> Generator[Decoded, None, None]:
    for start in range(0, num_batches * size, size):
        positions = np.arange(start, start + size, dtype=np.int64)
        windows, flips = np.zeros((size, 4), dtype=np.int32), np.zeros(size, dtype=np.bool_)
        kinds, orientations = np.zeros(size, dtype=np.uint8), np.ones(size, dtype=np.uint8)
        request = BatchRequest(positions, positions, windows, flips, kinds, orientations, SIZE, NoFiles())
        yield Decoded(request, images_of(positions))


def augmented(recipe: DataRecipe, num_threads: int = 2) -> list[Tensor]:
    augmentation = augmentation_of(recipe, seed=SEED, device=CPU, num_threads=num_threads)
    assert augmentation is not None
    return [changed.images for changed in augmentation(decoded())]


def users(name: str, **arguments: object) -> DataRecipe:
    return replace(PLAIN, augmentation=AugmentationRecipe(name=f"{__name__}:{name}", arguments=arguments))


def test_without_keys_there_is_no_augmentation() -> None:
    assert augmentation_of(PLAIN, seed=SEED, device=CPU, num_threads=2) is None


def test_jitter_comes_first_and_then_the_policy() -> None:
    found = augmented(BOTH)
    jitter, policy = ColorJitter(0.4, SEED), RandAugment(3, 12, SEED)
    for before, own in zip(decoded(), found, strict=True):
        positions = before.request.positions
        steps = zip(jitter.steps(positions, SIZE), policy.steps(positions, SIZE), strict=True)
        expected = [apply(apply(image.contiguous(), a), b) for image, (a, b) in zip(before.images, steps, strict=True)]
        assert torch.equal(own, torch.stack(expected))
        assert not torch.equal(own, before.images)


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_the_number_of_threads_changes_no_pixel(num_threads: int) -> None:
    for own, expected in zip(augmented(BOTH, num_threads), augmented(BOTH, 2), strict=True):
        assert torch.equal(own, expected)


def test_images_stay_uint8_and_channels_last() -> None:
    for images in augmented(replace(PLAIN, augmentation=AugmentationRecipe(name="trivialaugment"))):
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_torchs_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    augmented(BOTH, 3)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *found] == [before, before]


def test_images_for_a_gpu_are_pinned_by_the_thread_that_runs_a_users_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are new tensors; the decoder's own are in pinned memory already."""
    pinned: list[tuple[str, Tensor]] = []

    def pin_memory(images: Tensor) -> Tensor:
        pinned.append((threading.current_thread().name, images))
        return images

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    augmentation = augmentation_of(users("inverted"), seed=SEED, device=torch.device("cuda", 0), num_threads=2)
    assert augmentation is not None
    found = [changed.images for changed in augmentation(decoded())]
    assert [images is own for (_, own), images in zip(pinned, found, strict=True)] == [True] * 3
    assert all(name.startswith("augment-batch") for name, _ in pinned)


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    augmentation = augmentation_of(BOTH, seed=SEED, device=CPU, num_threads=3)
    assert augmentation is not None
    batches = augmentation(decoded(num_batches=10**6))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_of_the_decoder_is_raised_at_its_batch() -> None:
    def broken() -> Generator[Decoded, None, None]:
        yield from decoded(num_batches=1)
        raise OSError("the disk is gone")

    augmentation = augmentation_of(BOTH, seed=SEED, device=CPU, num_threads=1)
    assert augmentation is not None
    batches = augmentation(broken())
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


# --- a user's function


def inverted(images: Tensor, uniform: object, *, above: float = 0.0) -> Tensor:
    chosen = uniform(1)[:, 0] >= above  # type: ignore[operator]
    return torch.where(chosen[:, None, None, None], 255 - images, images)


def recorded(images: Tensor, uniform: object, *, found: list[Tensor]) -> Tensor:
    found += [uniform(2), uniform(3)]  # type: ignore[operator]
    return images


def copied(images: Tensor, uniform: object) -> Tensor:
    return images.contiguous()


def grey(images: Tensor, uniform: object) -> Tensor:
    return images[:, :1]


def as_floats(images: Tensor, uniform: object) -> Tensor:
    return images / 255


def nothing(images: Tensor, uniform: object) -> None:
    images.zero_()


def test_a_users_function_changes_the_images() -> None:
    for own, before in zip(augmented(users("inverted")), decoded(), strict=True):
        assert torch.equal(own, 255 - before.images)


def test_images_of_a_users_function_become_channels_last() -> None:
    for own in augmented(users("copied")):
        assert own.is_contiguous(memory_format=torch.channels_last)


def test_a_users_function_gets_its_arguments_and_numbers_of_each_image() -> None:
    changed = torch.cat(augmented(users("inverted", above=0.5)))
    images = torch.cat([before.images for before in decoded()])
    chosen = random_numbers(SEED, np.arange(15), Purpose.AUGMENTATION, 1)[:, 0] >= 0.5
    assert 0 < chosen.sum() < 15
    assert torch.equal(changed, torch.where(torch.from_numpy(chosen)[:, None, None, None], 255 - images, images))


def test_each_call_of_uniform_returns_new_numbers() -> None:
    found: list[Tensor] = []
    augmented(users("recorded", found=found))
    expected = random_numbers(SEED, np.arange(5), Purpose.AUGMENTATION, 5)
    assert torch.equal(torch.cat(found[:2], dim=1), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("grey", r"torch.uint8 \[5, 1, 24, 24\]"),
        ("as_floats", r"torch.float32 \[5, 3, 24, 24\]"),
        ("nothing", "NoneType"),
    ],
)
def test_another_result_of_a_users_function_is_refused(name: str, found: str) -> None:
    with pytest.raises(RecipeError, match=rf"returned {found}.*Allowed: .*torch.uint8 \[5, 3, 24, 24\]"):
        augmented(users(name))


@pytest.mark.parametrize(("name", "said"), [("missing", "has no missing"), ("recorded", "cannot be called with")])
def test_a_function_that_cannot_be_called_is_refused_before_training(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"data\.augmentation\.name: .*{said}"):
        augmentation_of(users(name), seed=SEED, device=CPU, num_threads=1)

"""The collection of odd images under every decoder: the same pixels, or an error with the same name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from image_requests import request_of
from odd_images import OddImage, good_images, refused_images
from torchvision.transforms.v2.functional import resize

from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding import regions as decode_regions
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.dali import DaliDecoder
from resnet_dist.data.decoding.requests import BatchRequest, Decoder

SIZE = 8  # of the windows and of the decoded images: only images that are smaller are resized
RESIZED = 10  # levels between DALI's resize and torch's, see test_decode_dali.py

needs_dali = pytest.mark.skipif(not decode_dali.is_installed(), reason="NVIDIA DALI is not installed")
needs_regions = pytest.mark.skipif(decode_regions.version() is None, reason="nvImageCodec is not installed")
every_decoder = pytest.mark.parametrize(
    "decoder_of",
    [
        pytest.param(lambda size: CpuDecoder(2, 1), id="Pillow"),
        pytest.param(lambda size: CpuDecoder(2, 1, regions=True), id="nvImageCodec", marks=needs_regions),
        pytest.param(lambda size: DaliDecoder(2, 1, size), id="DALI", marks=needs_dali),
    ],
)


def request_for(images: list[OddImage], *, apply: bool) -> BatchRequest:
    """A random window of each image, with its orientation applied or not."""
    random, windows = np.random.default_rng(7), []
    for image in images:
        pixels = image.turned if apply else image.pixels
        height, width = (SIZE, SIZE) if pixels is None else pixels.shape[:2]
        cut = min(SIZE, height), min(SIZE, width)
        windows.append((int(random.integers(height - cut[0] + 1)), int(random.integers(width - cut[1] + 1)), *cut))
    request = request_of([image.content for image in images], windows, resolution=SIZE)
    if not apply:
        return request
    return dataclasses.replace(request, orientations=np.array([image.orientation for image in images], np.uint8))


@every_decoder
@pytest.mark.parametrize("apply", [False, True], ids=["ignored", "applied"])
def test_every_decoder_gives_the_expected_pixels(apply: bool, decoder_of: Callable[[int], Decoder]) -> None:
    images = [image for image in good_images() for _ in range(3)]
    request = request_for(images, apply=apply)
    [decoded] = decoder_of(len(images)).decode(iter([request]))
    assert not decoded.errors
    for number, image in enumerate(images):
        top, left, height, width = request.windows[number].tolist()
        pixels = image.turned if apply else image.pixels
        assert pixels is not None
        window = torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)
        difference = decoded.images[number].int() - resize(window, [SIZE, SIZE], antialias=True).int()
        is_resized = (height, width) != (SIZE, SIZE)
        assert difference.abs().max() <= (RESIZED if is_resized else 0), image.name


@every_decoder
def test_every_decoder_refuses_the_same_images_and_alters_no_other(decoder_of: Callable[[int], Decoder]) -> None:
    refused, good = refused_images("decoder"), good_images()[:3]
    images = [*refused, *good, *refused]
    request = request_for(images, apply=False)
    windows = [tuple(window) for window in request.windows[len(refused) : -len(refused)].tolist()]
    [decoded] = decoder_of(len(images)).decode(iter([request]))
    names = {number: images[number].name for number in decoded.errors}
    assert names == {number: image.name for number, image in enumerate(images) if image.pixels is None}
    for number, error in decoded.errors.items():
        assert images[number].problem in str(error)
        assert request.name(number) in str(error)
    [alone] = decoder_of(len(good)).decode(
        iter([request_of([image.content for image in good], windows, resolution=SIZE)])
    )
    assert torch.equal(decoded.images[len(refused) : -len(refused)], alone.images)

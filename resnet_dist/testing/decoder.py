"""The conformance suite for decoders."""

from __future__ import annotations

import torch

from resnet_dist.data import BatchRequest, Decoder


def check_decoder(decoder: Decoder, requests: list[BatchRequest]) -> None:
    """Check that a decoder yields each request with its images, in order, and that no image depends on the others.

    `requests` are at least two, of images that can be decoded. Raises AssertionError.
    """
    together = list(decoder.decode(iter(requests)))
    assert len(together) == len(requests), f"{len(requests)} requests gave {len(together)} results"
    for request, decoded in zip(requests, together, strict=True):
        images = decoded.images
        assert decoded.request is request, "each result must have the request itself and its images"
        assert not decoded.errors, f"cannot decode: {decoded.errors}"
        shape = (len(request), 3, request.resolution, request.resolution)
        assert images.dtype is torch.uint8, f"images must be uint8, got {images.dtype}"
        assert tuple(images.shape) == shape, f"expected {shape}, got {tuple(images.shape)}"
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        assert channels_last, "images must be in channels-last memory"
    for decoded in together:
        for number in range(len(decoded.request)):
            [single] = decoder.decode(iter([decoded.request.only(number)]))
            name = decoded.request.name(number)
            same = torch.equal(single.images[0], decoded.images[number])
            assert same, f"{name}: decoded differently without the other samples"

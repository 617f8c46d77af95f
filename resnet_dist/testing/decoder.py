"""The conformance suite for decoders."""

from __future__ import annotations

import torch

from resnet_dist.data import BatchRequest, Decoder


def check_decoder(decoder: Decoder, requests: list[BatchRequest], resolution: int) -> None:
    """Check that a decoder yields each request with its images, in order, and that no image depends on the others.

    `requests` are at least two, of images that can be decoded. Raises AssertionError.
    """
    together = list(decoder.decode(iter(requests), resolution))
    assert len(together) == len(requests), f"{len(requests)} requests gave {len(together)} results"
    for request, (given, images) in zip(requests, together, strict=True):
        assert given is request, "each result must be a pair of the request itself and its images"
        shape = (len(request), 3, resolution, resolution)
        assert images.dtype is torch.uint8, f"images must be uint8, got {images.dtype}"
        assert tuple(images.shape) == shape, f"expected {shape}, got {tuple(images.shape)}"
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        assert channels_last, "images must be in channels-last memory"
    for request, images in together:
        for number, path in enumerate(request.paths):
            row = slice(number, number + 1)
            single = BatchRequest(
                request.positions[row], request.sample_ids[row], [path], request.windows[row], request.flips[row]
            )
            [(_, image)] = decoder.decode(iter([single]), resolution)
            assert torch.equal(image[0], images[number]), f"{path}: decoded differently without the other samples"

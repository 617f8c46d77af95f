"""What a decoder must do to take the place of one of ours."""

from __future__ import annotations

import torch

from resnet_dist.data import Decoder, Request


def check_decoder(decoder: Decoder, requests: list[Request], resolution: int) -> None:
    """Check that a decoder gives what was asked for, in order, and the same for a sample whatever its neighbours.

    `requests` are at least two, of images that can be decoded.
    """
    together = list(decoder.decode(iter(requests), resolution))
    assert len(together) == len(requests), f"{len(requests)} requests gave {len(together)} tensors"
    for request, images in zip(requests, together, strict=True):
        shape = (len(request), 3, resolution, resolution)
        assert images.dtype is torch.uint8, f"images must be uint8, got {images.dtype}"
        assert tuple(images.shape) == shape, f"expected {shape}, got {tuple(images.shape)}"
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        assert channels_last, "images must be in channels-last memory"
    for request, images in zip(requests, together, strict=True):
        for number in range(len(request)):
            row = slice(number, number + 1)
            alone = Request(request.sample_ids[row], request.paths[row], request.windows[row], request.flips[row])
            (image,) = decoder.decode(iter([alone]), resolution)
            assert torch.equal(image[0], images[number]), f"{alone.paths[0]}: another image without its neighbours"

"""Requests for decoders: of an index, or of encoded images."""

from __future__ import annotations

import gc
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from resnet_dist.data import BatchRequest, Index
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decoding.requests import Decoder
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError

RESOLUTION = 32
FIRST_ID = 40

Window = tuple[int, int, int, int]


class Contents:
    """Images in memory; their ids begin at FIRST_ID. None is a file that is missing."""

    def __init__(self, contents: Sequence[bytes | None]) -> None:
        self._contents = contents

    def name(self, sample_id: int) -> str:
        return f"image-{sample_id}.jpg"

    def read(self, sample_id: int) -> bytes:
        content = self._contents[sample_id - FIRST_ID]
        if content is None:
            raise DataError(self.name(sample_id), "cannot be read: it is gone", sample_id)
        return content


def request_for(index: Index, first: int, last: int) -> BatchRequest:
    """Random windows of positions first..last; the images of the index in their order, again and again."""
    positions = np.arange(first, last, dtype=np.int64)
    ids = positions % len(index)
    windows = training_windows(index.heights[ids], index.widths[ids], positions, 0, (0.08, 1.0), (3 / 4, 4 / 3))
    return BatchRequest.of(index, files_of(index), positions, ids, windows, flips(positions, 0), RESOLUTION)


def requests_for(index: Index, sizes: list[int]) -> Iterator[BatchRequest]:
    ends = np.cumsum(sizes).tolist()
    return (request_for(index, end - size, end) for size, end in zip(sizes, ends, strict=True))


def request_of(
    contents: Sequence[bytes | None],
    windows: Sequence[Window],
    flip: Sequence[bool] = (),
    resolution: int = RESOLUTION,
) -> BatchRequest:
    """Windows of images of unknown kinds."""
    num = len(contents)
    return BatchRequest(
        positions=np.arange(num),
        sample_ids=np.arange(FIRST_ID, FIRST_ID + num),
        windows=np.array(windows, dtype=np.int32).reshape(num, 4),
        flips=np.array(flip or [False] * num),
        kinds=np.zeros(num, np.uint8),
        orientations=np.ones(num, np.uint8),
        resolution=resolution,
        files=Contents(contents),
    )


def narrow_requests(make_photo: Callable[..., Any], height: int, width: int) -> list[BatchRequest]:
    """Windows of that size at every left and at every top of JPEGs of 34 × 34 pixels, resized to squares of `width`.

    34 is two columns and rows more than whole blocks of chroma.
    """
    tops, lefts = range(34 - height + 1), range(34 - width + 1)
    places = [*itertools.product((0, tops[-1] // 2, tops[-1]), lefts), *itertools.product(tops, (0, 17, lefts[-1]))]
    windows = [(top, left, height, width) for top, left in places]
    requests = []
    for options in ({}, {"progressive": True}, {"subsampling": 1}):
        stream = io.BytesIO()
        Image.fromarray(make_photo(34, 34, 0)).save(stream, "JPEG", **options)
        requests.append(request_of([stream.getvalue()] * len(windows), windows, resolution=width))
    return requests


def images_of(decoder: Decoder, requests: Iterator[BatchRequest]) -> torch.Tensor:
    """All images, which must have no errors: uint8 [n, 3, RESOLUTION, RESOLUTION]."""
    batches = []
    for decoded in decoder.decode(requests):
        assert not decoded.errors
        batches.append(decoded.images)
    return torch.cat(batches)


def growth(decoder: Decoder, index: Index, num_batches: int = 500) -> int:
    """The bytes of memory that this process has more after `num_batches` batches of 4 images than after 100."""
    sizes = []
    for number, _ in enumerate(decoder.decode(requests_for(index, [4] * num_batches))):
        if number in (99, num_batches - 1):
            gc.collect()
            sizes.append(_anonymous_bytes())
    return sizes[1] - sizes[0]


def _anonymous_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2.functional import resize, to_image

from resnet_dist.data import Index
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decode_torchvision import TorchvisionDecoder
from resnet_dist.data.requests import BatchRequest
from resnet_dist.errors import DataError

RESOLUTION = 32


def request_for(index: Index, first: int, last: int) -> BatchRequest:
    positions = np.arange(first, last, dtype=np.int64)
    ids = positions % len(index)
    windows = training_windows(index.heights[ids], index.widths[ids], positions, 0, (0.08, 1.0), (3 / 4, 4 / 3))
    return BatchRequest.of(index, positions, ids, windows, flips(positions, 0))


def request_file(path: Path, window: tuple[int, int, int, int], *, flip: bool = False) -> BatchRequest:
    return BatchRequest(np.array([0]), np.array([7]), [str(path)], np.array([window], dtype=np.int32), np.array([flip]))


def decode_one(request: BatchRequest, resolution: int = RESOLUTION) -> NDArray[np.uint8]:
    [(_, images)] = TorchvisionDecoder(1, 1).decode(iter([request]), resolution)
    pixels: NDArray[np.uint8] = images[0].permute(1, 2, 0).numpy()
    return pixels


def test_images_are_bytes_in_channels_last_memory(train_index: Index) -> None:
    [(_, images)] = TorchvisionDecoder(2, 1).decode(iter([request_for(train_index, 0, 5)]), RESOLUTION)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_each_sample_is_the_window_of_its_image_resized_and_flipped(train_index: Index) -> None:
    request = request_for(train_index, 0, 12)
    [(_, images)] = TorchvisionDecoder(2, 1).decode(iter([request]), RESOLUTION)
    assert request.flips.any()
    assert not request.flips.all()
    for number, path in enumerate(request.paths):
        top, left, height, width = request.windows[number].tolist()
        whole = to_image(Image.open(path).convert("RGB"))
        expected = resize(whole[:, top : top + height, left : left + width], [RESOLUTION, RESOLUTION], antialias=True)
        assert torch.equal(images[number], expected.flip(2) if request.flips[number] else expected)


def test_a_window_of_the_output_size_is_cut_exactly(train_index: Index) -> None:
    pixels = np.array(Image.open(train_index.path(0)).convert("RGB"))
    plain = decode_one(request_file(Path(train_index.path(0)), (7, 11, RESOLUTION, RESOLUTION)))
    flipped = decode_one(request_file(Path(train_index.path(0)), (7, 11, RESOLUTION, RESOLUTION), flip=True))
    assert np.array_equal(plain, pixels[7 : 7 + RESOLUTION, 11 : 11 + RESOLUTION])
    assert np.array_equal(flipped, plain[:, ::-1])


def test_a_sample_depends_neither_on_its_batch_nor_on_threads_nor_on_reading_ahead(train_index: Index) -> None:
    def decoded(num_threads: int, prefetch: int, batch: int) -> torch.Tensor:
        requests = (request_for(train_index, first, min(first + batch, 24)) for first in range(0, 24, batch))
        return torch.cat(
            [images for _, images in TorchvisionDecoder(num_threads, prefetch).decode(requests, RESOLUTION)]
        )

    expected = decoded(1, 0, 24)
    for num_threads, prefetch, batch in ((1, 2, 1), (3, 0, 7), (4, 5, 5)):
        assert torch.equal(decoded(num_threads, prefetch, batch), expected)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("grey.jpg", "L", {"quality": 95}),
        ("progressive.jpg", "RGB", {"progressive": True}),
        ("alpha.png", "RGBA", {}),
        ("palette.png", "P", {}),
        ("grey.png", "L", {}),
        ("photo.bmp", "RGB", {}),
        ("photo.webp", "RGB", {"lossless": True}),
    ],
)
def test_every_format_becomes_the_rgb_that_pillow_gives(
    name: str, mode: str, options: dict[str, Any], make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path
) -> None:
    file = tmp_path / name
    Image.fromarray(make_photo(32, 32, 3)).convert(mode).save(file, **options)
    expected = np.array(Image.open(file).convert("RGB"))
    assert np.array_equal(decode_one(request_file(file, (0, 0, 32, 32))), expected)


def test_cmyk_becomes_rgb(make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path) -> None:
    file = tmp_path / "cmyk.jpg"
    Image.fromarray(make_photo(32, 32, 3)).convert("CMYK").save(file, quality=95)
    expected = np.array(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(decode_one(request_file(file, (0, 0, 32, 32))) - expected).max() <= 1  # rounding of the product C × K


def test_a_png_that_calls_itself_jpeg_is_decoded(make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(32, 32, 3)).save(file, "PNG")
    assert np.array_equal(decode_one(request_file(file, (0, 0, 32, 32))), make_photo(32, 32, 3))


def test_exif_orientation_is_ignored(make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path) -> None:
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_photo(32, 48, 3)).save(plain)
    Image.fromarray(make_photo(32, 48, 3)).save(turned, exif=exif)
    window = (0, 0, 32, 48)
    assert np.array_equal(decode_one(request_file(turned, window)), decode_one(request_file(plain, window)))


def test_a_broken_image_is_named(train_index: Index, tmp_path: Path) -> None:
    file = tmp_path / "cut.jpg"
    file.write_bytes(Path(train_index.path(0)).read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut\.jpg \(sample 7\): cannot be decoded") as caught:
        decode_one(request_file(file, (0, 0, 8, 8)))
    assert (caught.value.path, caught.value.sample_id) == (str(file), 7)


@pytest.mark.parametrize("content", [None, b"", b"404 not found"])
def test_what_is_no_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg \(sample 7\): cannot be decoded"):
        decode_one(request_file(file, (0, 0, 8, 8)))


def test_an_image_that_shrank_since_it_was_indexed_is_named(train_index: Index) -> None:
    with pytest.raises(DataError, match=r"is too small for its window .*: it has changed since"):
        decode_one(request_file(Path(train_index.path(0)), (30, 0, 31, 8)))


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_reads_as_far_ahead_as_it_was_told_and_no_further(train_index: Index) -> None:
    taken = []

    def requests() -> Iterator[BatchRequest]:
        for first in range(100):
            taken.append(first)
            yield request_for(train_index, first, first + 1)

    decoding = TorchvisionDecoder(2, prefetch=3).decode(requests(), RESOLUTION)
    assert taken == []
    next(decoding)
    assert taken == [0, 1, 2, 3]
    next(decoding)
    assert taken == [0, 1, 2, 3, 4]
    decoding.close()


def test_closing_early_ends_all_threads(train_index: Index) -> None:
    decoding = TorchvisionDecoder(4, 2).decode((request_for(train_index, i, i + 4) for i in range(1000)), RESOLUTION)
    next(decoding)
    assert decode_threads()
    decoding.close()
    assert decode_threads() == []


def test_an_error_ends_all_threads(train_index: Index, tmp_path: Path) -> None:
    requests = [request_for(train_index, 0, 4), request_file(tmp_path / "gone.jpg", (0, 0, 8, 8))]
    decoding = TorchvisionDecoder(4, 2).decode(iter(requests), RESOLUTION)
    next(decoding)
    with pytest.raises(DataError, match="gone"):
        next(decoding)
    assert decode_threads() == []


def test_no_requests_give_no_images() -> None:
    assert list(TorchvisionDecoder(1, 1).decode(iter([]), RESOLUTION)) == []


def test_a_request_must_hold_samples_and_one_window_and_flip_for_each() -> None:
    window = np.zeros((1, 4), dtype=np.int32)
    with pytest.raises(ValueError, match="request of 0 samples"):
        BatchRequest(np.arange(0), np.array([], dtype=np.int64), [], window[:0], np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="request of 2 samples"):
        BatchRequest(np.arange(2), np.array([0, 1]), ["a", "b"], window, np.zeros(2, dtype=bool))

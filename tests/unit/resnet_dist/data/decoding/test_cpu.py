"""Decoding on the CPU: every test that is not about one of the two runs with Pillow alone and with nvImageCodec."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from image_requests import (
    FIRST_ID,
    RESOLUTION,
    Window,
    growth,
    images_of,
    narrow_requests,
    request_for,
    request_of,
    requests_for,
)
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2.functional import resize, to_image

from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.decoding import regions as decode_regions
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.data.headers.jpeg_data import is_complete_jpeg
from resnet_dist.data.index.table import Kind

has_regions = decode_regions.version() is not None
needs_regions = pytest.mark.skipif(not has_regions, reason="nvImageCodec is not installed")
both = pytest.mark.parametrize(
    "regions", [False, pytest.param(True, marks=needs_regions)], ids=["Pillow", "nvImageCodec"]
)


def encoded(pixels: NDArray[np.uint8], mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def decode(request: BatchRequest, *, regions: bool) -> Decoded:
    [decoded] = CpuDecoder(1, 1, regions).decode(iter([request]))
    return decoded


def decode_one(content: bytes | None, window: Window, *, regions: bool, flip: bool = False) -> NDArray[np.uint8]:
    decoded = decode(request_of([content], [window], [flip]), regions=regions)
    for error in decoded.errors.values():
        raise error
    pixels: NDArray[np.uint8] = decoded.images[0].permute(1, 2, 0).numpy()
    return pixels


@both
def test_images_are_bytes_in_channels_last_memory(regions: bool, train_index: Index) -> None:
    images = decode(request_for(train_index, 0, 5), regions=regions).images
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert images.is_contiguous(memory_format=torch.channels_last)


@both
def test_each_sample_is_the_window_of_its_image_resized_and_flipped(regions: bool, train_index: Index) -> None:
    request = request_for(train_index, 0, 12)
    images = images_of(CpuDecoder(2, 1, regions), iter([request]))
    assert request.flips.any()
    assert not request.flips.all()
    for number in range(12):
        top, left, height, width = request.windows[number].tolist()
        whole = to_image(Image.open(request.name(number)).convert("RGB"))
        expected = resize(whole[:, top : top + height, left : left + width], [RESOLUTION, RESOLUTION], antialias=True)
        assert torch.equal(images[number], expected.flip(2) if request.flips[number] else expected)


@both
def test_a_window_of_the_output_size_is_cut_exactly(regions: bool, make_photo: Callable[..., Any]) -> None:
    content = encoded(make_photo(60, 80, 0))
    pixels = np.array(Image.open(io.BytesIO(content)))
    plain = decode_one(content, (7, 11, RESOLUTION, RESOLUTION), regions=regions)
    flipped = decode_one(content, (7, 11, RESOLUTION, RESOLUTION), flip=True, regions=regions)
    assert np.array_equal(plain, pixels[7 : 7 + RESOLUTION, 11 : 11 + RESOLUTION])
    assert np.array_equal(flipped, plain[:, ::-1])


@both
def test_a_sample_depends_neither_on_its_batch_nor_on_threads_nor_on_reading_ahead(
    regions: bool, train_index: Index
) -> None:
    expected = images_of(CpuDecoder(1, 0, regions), requests_for(train_index, [24]))
    for num_threads, prefetch, sizes in ((1, 2, [1] * 24), (3, 0, [7, 7, 7, 3]), (4, 5, [5, 19])):
        found = images_of(CpuDecoder(num_threads, prefetch, regions), requests_for(train_index, sizes))
        assert torch.equal(found, expected)


@needs_regions
@pytest.mark.parametrize("size", range(1, 5))
def test_nvimagecodec_gives_the_pixels_of_pillow_in_the_narrowest_windows(
    size: int, make_photo: Callable[..., Any]
) -> None:
    for request in [*narrow_requests(make_photo, size, size), *narrow_requests(make_photo, 33, size)]:
        found, expected = decode(request, regions=True), decode(request, regions=False)
        assert not found.errors
        assert torch.equal(found.images, expected.images)


@needs_regions
def test_nvimagecodec_gives_the_pixels_of_pillow(
    make_photo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    random, contents, windows = np.random.default_rng(0), [], []
    kinds: list[dict[str, Any]] = [
        {},
        {"mode": "L"},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"restart_marker_blocks": 3},
    ]
    for number in range(60):
        height, width = random.integers(9, 90, 2).tolist()
        contents.append(encoded(make_photo(height, width, number), **kinds[number % len(kinds)]))
        size = random.integers(1, height + 1), random.integers(2, width + 1)
        corner = random.integers(0, height - size[0] + 1), random.integers(0, width - size[1] + 1)
        windows.append((*corner, *size))
    expected = decode(request_of(contents, windows), regions=False)
    assert not expected.errors
    monkeypatch.setattr("resnet_dist.data.decoding.cpu.pillow_window", None)  # it has nothing to do
    assert torch.equal(decode(request_of(contents, windows), regions=True).images, expected.images)


@both
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {"quality": 95}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "L", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_every_format_becomes_the_rgb_that_pillow_gives(
    kind: str, mode: str, options: dict[str, Any], regions: bool, make_photo: Callable[..., Any]
) -> None:
    content = encoded(make_photo(32, 32, 3), mode, kind, **options)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode_one(content, (0, 0, 32, 32), regions=regions), expected)


@both
@pytest.mark.parametrize("content", [None, b"", b"404 not found", "cut"])
def test_what_cannot_be_decoded_is_named_and_alters_no_other(
    content: bytes | str | None, regions: bool, make_photo: Callable[..., Any]
) -> None:
    good = encoded(make_photo(40, 40, 1))
    bad = good[: len(good) // 2] if isinstance(content, str) else content
    windows = [(0, 0, 20, 20)] * 3
    decoded = decode(request_of([good, bad, good], windows), regions=regions)
    assert list(decoded.errors) == [1]
    assert str(decoded.errors[1]).startswith(f"image-{FIRST_ID + 1}.jpg (sample {FIRST_ID + 1}): ")
    assert not decoded.images[1].any()
    alone = decode(request_of([good], windows[:1]), regions=regions).images[0]
    assert torch.equal(decoded.images[0], alone)
    assert torch.equal(decoded.images[2], alone)


@both
def test_an_image_that_is_smaller_than_its_window_is_named(regions: bool, make_photo: Callable[..., Any]) -> None:
    decoded = decode(request_of([encoded(make_photo(60, 80, 0))], [(30, 0, 31, 8)]), regions=regions)
    assert "is too small for its window (top, left, height, width) (30, 0, 31, 8)" in str(decoded.errors[0])


@both
def test_damage_below_the_window_has_the_verdict_of_damage_inside(
    regions: bool, make_photo: Callable[..., Any]
) -> None:
    content = bytearray(encoded(make_photo(64, 64, 2), quality=95))
    place = len(content) * 9 // 10
    content[place : place + 2] = b"\xff\xda"  # the start of a scan where none can be
    for window in ((0, 0, 8, 8), (48, 48, 16, 16)):
        decoded = decode(request_of([bytes(content)], [window]), regions=regions)
        assert "cannot be decoded" in str(decoded.errors[0])


def test_damage_is_looked_for_once_per_image_by_requests_that_share_what_they_found(
    make_photo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def is_complete(content: bytes) -> bool:
        asked.append(content)
        return is_complete_jpeg(content)

    monkeypatch.setattr("resnet_dist.data.decoding.requests.is_complete_jpeg", is_complete)
    good = encoded(make_photo(40, 40, 1))
    damaged = good[:-50] + b"\xff\xda" + good[-48:]
    request = request_of([good, damaged], [(0, 0, 8, 8)] * 2)
    request = dataclasses.replace(request, seen=np.zeros(FIRST_ID + 2, dtype=np.uint8))
    assert [request.encoded(number)[1] for number in (0, 1, 0, 1)] == [True, False, True, False]
    assert asked == [good, damaged]
    assert request.seen is not None
    assert request.seen[FIRST_ID:].tolist() == [Kind.ORDINARY, Kind.PILLOW]


@both
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientations_of_a_users_index_are_applied(
    orientation: int, regions: bool, make_photo: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(make_photo(20, 30, 0)))
    height, width, turns = np.full(1, 20, np.int32), np.full(1, 30, np.int32), np.full(1, orientation, np.uint8)
    index = Index(str(tmp_path), ("a",), ("a.jpg",), np.zeros(1, np.int64), height, width, orientations=turns)
    index = index.with_exif("apply")
    decoded = decode(request_for(index, 0, 1), regions=regions)
    assert not decoded.errors


@both
def test_an_image_for_which_memory_is_short_is_named(
    regions: bool, make_photo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "crop", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError, match=rf"while decoding image-{FIRST_ID}\.jpg"):
        decode(request_of([encoded(make_photo(40, 40, 1), kind="PNG")], [(0, 0, 8, 8)]), regions=regions)


@both
@pytest.mark.parametrize("by_users_function", [False, True])
def test_a_picture_that_was_overwritten_is_not_cut_with_its_old_window(
    by_users_function: bool, regions: bool, image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path, dirs_exist_ok=True)
    index = index_image_folder(str(tmp_path), "train")
    if by_users_function:
        index = Index(index.root, index.classes, index.paths, index.labels, index.heights, index.widths)
    Image.new("RGB", (100, 100)).save(index.path(2))  # larger than it was
    decoded = decode(request_for(index, 0, 4), regions=regions)
    assert list(decoded.errors) == [2]
    assert re.search(r"2\.jpg \(sample 2\): has changed since it was indexed \(it has .* not ", str(decoded.errors[2]))


@needs_regions
def test_nvimagecodec_says_nothing_about_an_image_that_pillow_names(
    make_photo: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    content = encoded(make_photo(64, 64, 2))
    assert decode_regions.RegionDecoder().decode(content[:900], (0, 0, 64, 64)) is None
    assert capfd.readouterr() == ("", "")


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@both
def test_reads_as_far_ahead_as_it_was_told_and_no_further(regions: bool, train_index: Index) -> None:
    taken = []

    def requests() -> Iterator[BatchRequest]:
        for first in range(100):
            taken.append(first)
            yield request_for(train_index, first, first + 1)

    decoding = CpuDecoder(2, 3, regions).decode(requests())
    assert taken == []
    next(decoding)
    assert taken == [0, 1, 2, 3]
    next(decoding)
    assert taken == [0, 1, 2, 3, 4]
    decoding.close()


@both
def test_closing_early_ends_all_threads(regions: bool, train_index: Index) -> None:
    decoding = CpuDecoder(4, 2, regions).decode(request_for(train_index, i, i + 4) for i in range(1000))
    next(decoding)
    assert decode_threads()
    decoding.close()
    assert decode_threads() == []


@both
def test_an_error_of_the_requests_comes_through_and_ends_all_threads(regions: bool, train_index: Index) -> None:
    def requests() -> Iterator[BatchRequest]:
        yield request_for(train_index, 0, 4)
        raise OSError("the index is gone")

    decoding = CpuDecoder(4, 0, regions).decode(requests())
    next(decoding)
    with pytest.raises(OSError, match="the index is gone"):
        next(decoding)
    assert decode_threads() == []


def test_torchs_number_of_threads_stays(train_index: Index) -> None:
    torch.set_num_threads(3)
    images_of(CpuDecoder(2, 1), requests_for(train_index, [4]))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *found] == [3, 3]


def test_no_requests_give_no_images() -> None:
    assert list(CpuDecoder(1, 1).decode(iter([]))) == []


def test_a_request_must_hold_samples_and_one_window_and_flip_for_each() -> None:
    with pytest.raises(ValueError, match="request of 0 samples"):
        request_of([], [])
    with pytest.raises(ValueError, match="request of 2 samples"):
        request_of([b"", b""], [(0, 0, 1, 1)] * 2, [True])


@both
def test_images_are_decoded_into_pinned_memory_that_a_thread_of_the_decoder_allocates(
    regions: bool, train_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU the memory is ordinary; the images must lie in it, so that nothing copies them."""
    allocated: list[tuple[str, int]] = []
    empty = torch.empty

    def pinned(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        assert pin_memory
        made = empty(*shape, **options)
        allocated.append((threading.current_thread().name, made.data_ptr()))
        return made

    expected = images_of(CpuDecoder(1, 1, regions), requests_for(train_index, [4, 4, 3]))
    kept = []
    monkeypatch.setattr(torch, "empty", pinned)
    for num_threads in (1, 3):
        allocated.clear()
        kept = [
            decoded.images
            for decoded in CpuDecoder(num_threads, 2, regions, pinned=True).decode(requests_for(train_index, [4, 4, 3]))
        ]
        assert torch.equal(torch.cat(kept), expected)
        assert [place for _, place in allocated] == [images.data_ptr() for images in kept]
        assert all(name.startswith("decode") for name, _ in allocated)


@both
def test_memory_that_cannot_be_pinned_is_an_error(
    regions: bool, train_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("cannot pin memory")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(RuntimeError, match="cannot pin memory"):
        list(CpuDecoder(2, 2, regions, pinned=True).decode(requests_for(train_index, [4, 4])))
    assert decode_threads() == []


@both
def test_memory_stays_flat_over_500_batches(regions: bool, train_index: Index) -> None:
    assert growth(CpuDecoder(2, 2, regions), train_index) < 4 * 2**20

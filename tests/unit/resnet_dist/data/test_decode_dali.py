"""DALI on the CPU against torchvision: windows and flips exactly, resized pixels within the difference of the filters.

DALI repeats the border pixel where torchvision renormalises the filter, and rounds half-way values differently; hence
the three tolerances below, in levels of 0..255.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data import Index, decode_dali
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decode_dali import DaliDecoder
from resnet_dist.data.decode_torchvision import TorchvisionDecoder
from resnet_dist.data.requests import BatchRequest
from resnet_dist.errors import DataError, MissingPackage

needs_dali = pytest.mark.skipif(not decode_dali.is_installed(), reason="NVIDIA DALI is not installed")

RESOLUTION = 32
INTERIOR, BORDER, MEAN = 1, 10, 0.2  # the largest difference inside, in the outermost pixel, and on average


def request_for(index: Index, first: int, last: int) -> BatchRequest:
    positions = np.arange(first, last, dtype=np.int64)
    ids = positions % len(index)
    windows = training_windows(index.heights[ids], index.widths[ids], positions, 0, (0.08, 1.0), (3 / 4, 4 / 3))
    return BatchRequest.of(index, positions, ids, windows, flips(positions, 0))


def request_file(path: Path, window: tuple[int, int, int, int], *, flip: bool = False) -> BatchRequest:
    return BatchRequest(np.array([0]), np.array([7]), [str(path)], np.array([window], dtype=np.int32), np.array([flip]))


def requests_for(index: Index, sizes: list[int]) -> Iterator[BatchRequest]:
    ends = np.cumsum(sizes).tolist()
    return (request_for(index, end - size, end) for size, end in zip(sizes, ends, strict=True))


def num_threads() -> int:
    """Threads of this process, DALI's own among them."""
    gc.collect()  # errors that earlier tests caught may still hold a pipeline
    return len(list(Path("/proc/self/task").iterdir()))


@needs_dali
def test_windows_and_flips_are_cut_exactly(train_index: Index) -> None:
    ids = np.array([0, 0, 4, 10])
    windows = np.array([[7, 11, 32, 32], [7, 11, 32, 32], [32, 32, 32, 32], [0, 0, 32, 32]], dtype=np.int32)
    request = BatchRequest.of(train_index, ids, ids, windows, np.array([False, True, False, True]))
    [(_, images)] = DaliDecoder(2, 1, 4).decode(iter([request]), 32)
    [(_, expected)] = TorchvisionDecoder(1, 1).decode(iter([request]), 32)
    assert torch.equal(images, expected)
    assert torch.equal(images[1], images[0].flip(2))


@needs_dali
def test_resized_images_agree_with_torchvision(train_index: Index) -> None:
    [(_, images)] = DaliDecoder(2, 1, 60).decode(requests_for(train_index, [60]), RESOLUTION)
    [(_, expected)] = TorchvisionDecoder(1, 1).decode(requests_for(train_index, [60]), RESOLUTION)
    difference = (images.int() - expected.int()).abs()
    assert difference[:, :, 1:-1, 1:-1].max() <= INTERIOR
    assert difference.max() <= BORDER
    assert difference.float().mean() <= MEAN


@needs_dali
def test_images_are_bytes_in_channels_last_memory(train_index: Index) -> None:
    [(_, images)] = DaliDecoder(1, 1, 8).decode(requests_for(train_index, [5]), RESOLUTION)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert images.is_contiguous(memory_format=torch.channels_last)


@needs_dali
def test_a_sample_depends_neither_on_its_batch_nor_on_threads_nor_on_reading_ahead(train_index: Index) -> None:
    def decoded(num_threads: int, prefetch: int, sizes: list[int]) -> torch.Tensor:
        decoding = DaliDecoder(num_threads, prefetch, 24).decode(requests_for(train_index, sizes), RESOLUTION)
        return torch.cat([images for _, images in decoding])

    expected = decoded(1, 1, [24])
    for num_threads, prefetch, sizes in ((2, 0, [1] * 24), (3, 2, [7, 7, 7, 3]), (1, 4, [1, 20, 3])):
        assert torch.equal(decoded(num_threads, prefetch, sizes), expected)


@needs_dali
def test_kept_images_stay_as_they_are(train_index: Index) -> None:
    decoding = DaliDecoder(2, 2, 4).decode(requests_for(train_index, [4] * 10), RESOLUTION)
    kept, copies = [], []
    for _, images in decoding:
        kept.append(images)
        copies.append(images.clone())
    del decoding
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@needs_dali
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_the_rgb_that_torchvision_gives(
    mode: str, make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path
) -> None:
    file = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(32, 32, 3)).convert(mode).save(file, quality=95)
    request = request_file(file, (0, 0, 32, 32))
    [(_, images)] = DaliDecoder(1, 1, 1).decode(iter([request]), 32)
    [(_, expected)] = TorchvisionDecoder(1, 1).decode(iter([request]), 32)
    assert (images.int() - expected.int()).abs().max() <= (0 if mode == "L" else 1)


@needs_dali
def test_exif_orientation_is_ignored(make_photo: Callable[..., NDArray[np.uint8]], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_photo(32, 48, 3)).save(tmp_path / "turned.jpg", exif=exif)
    request = request_file(tmp_path / "turned.jpg", (0, 16, 32, 32))
    [(_, images)] = DaliDecoder(1, 1, 1).decode(iter([request]), 32)
    [(_, expected)] = TorchvisionDecoder(1, 1).decode(iter([request]), 32)
    assert torch.equal(images, expected)


@needs_dali
@pytest.mark.parametrize("content", [None, b"", b"404 not found", "cut"])
def test_a_broken_image_is_named_after_the_good_ones_came(
    content: bytes | str | None, train_index: Index, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    if content == "cut":
        broken.write_bytes(Path(train_index.path(0)).read_bytes()[:600])
    elif isinstance(content, bytes):
        broken.write_bytes(content)
    good = request_for(train_index, 0, 3)
    bad = BatchRequest(
        np.arange(3),
        np.array([3, 41, 5]),
        [train_index.path(3), str(broken), train_index.path(5)],
        np.array([[0, 0, 30, 30]] * 3, dtype=np.int32),
        np.zeros(3, dtype=bool),
    )
    decoding = DaliDecoder(2, 3, 3).decode(iter([good, good, bad, good]), RESOLUTION)
    next(decoding)
    next(decoding)
    with pytest.raises(DataError, match=r"broken\.jpg \(sample 41\)") as caught:
        next(decoding)
    assert caught.value.path == str(broken)


@needs_dali
def test_an_image_that_shrank_since_it_was_indexed_is_named(train_index: Index) -> None:
    request = request_file(Path(train_index.path(0)), (30, 0, 31, 8))
    with pytest.raises(DataError, match="changed since it was indexed"):
        list(DaliDecoder(1, 1, 1).decode(iter([request]), RESOLUTION))


@needs_dali
def test_an_error_of_the_requests_comes_through(train_index: Index) -> None:
    def requests() -> Iterator[BatchRequest]:
        yield request_for(train_index, 0, 2)
        raise DataError("/data", "the index is gone")

    with pytest.raises(DataError, match="the index is gone"):
        list(DaliDecoder(1, 2, 2).decode(requests(), RESOLUTION))


@needs_dali
@pytest.mark.parametrize("num_good", [0, 1])
def test_an_error_that_no_image_is_to_blame_for_stays_what_it_is(num_good: int, train_index: Index) -> None:
    def requests() -> Iterator[BatchRequest]:
        yield from requests_for(train_index, [2] * num_good)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        list(DaliDecoder(1, 2, 2).decode(requests(), RESOLUTION))


@needs_dali
def test_closing_early_ends_all_threads(train_index: Index) -> None:
    before = num_threads()
    decoding = DaliDecoder(4, 2, 4).decode(requests_for(train_index, [4] * 100), RESOLUTION)
    next(decoding)
    assert num_threads() >= before + 4
    decoding.close()
    assert num_threads() == before


@needs_dali
def test_a_broken_image_ends_all_threads(train_index: Index, tmp_path: Path) -> None:
    requests = [request_for(train_index, 0, 1), request_file(tmp_path / "gone.jpg", (0, 0, 8, 8))]
    before = num_threads()
    with pytest.raises(DataError, match="gone") as caught:
        list(DaliDecoder(4, 2, 4).decode(iter(requests), RESOLUTION))
    assert num_threads() == before
    assert isinstance(caught.value.__cause__, RuntimeError)  # what DALI said


@needs_dali
def test_no_requests_give_no_images() -> None:
    assert list(DaliDecoder(1, 1, 1).decode(iter([]), RESOLUTION)) == []


def test_without_dali_the_recipe_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_dali, "is_installed", lambda: False)
    with pytest.raises(MissingPackage, match=r"data\.decoder: needs NVIDIA DALI.*pip install") as caught:
        DaliDecoder(1, 1, 1)
    assert caught.value.key == "data.decoder"

"""DALI on the CPU against the CPU decoder: windows and flips exactly, resized pixels within the filters' difference.

DALI repeats the border pixel where torch renormalises the filter, and rounds half-way values differently; hence the
three tolerances below, in levels of 0..255.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_requests import FIRST_ID, RESOLUTION, growth, images_of, narrow_requests, request_of, requests_for
from PIL import Image

from resnet_dist.data import Index
from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.dali import DaliDecoder
from resnet_dist.data.decoding.requests import BatchRequest
from resnet_dist.errors import DataError, MissingPackage
from resnet_dist.recipe.schema import DaliRecipe

needs_dali = pytest.mark.skipif(not decode_dali.is_installed(), reason="NVIDIA DALI is not installed")

INTERIOR, BORDER, MEAN = 1, 10, 0.2  # the largest difference inside, in the outermost pixel, and on average


@pytest.fixture
def photos(make_photo: Callable[..., Any]) -> list[bytes]:
    """JPEGs of 40 × 50 pixels."""
    made = []
    for seed in range(4):
        stream = io.BytesIO()
        Image.fromarray(make_photo(40, 50, seed)).save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


def num_threads() -> int:
    """Threads of this process, DALI's own among them."""
    gc.collect()  # errors that earlier tests caught may still hold a pipeline
    return len(list(Path("/proc/self/task").iterdir()))


@needs_dali
def test_windows_and_flips_are_cut_exactly(photos: list[bytes]) -> None:
    windows = [(7, 11, 32, 32), (7, 11, 32, 32), (8, 18, 32, 32), (0, 0, 32, 32)]
    request = request_of([photos[0], photos[0], photos[1], photos[2]], windows, [False, True, False, True])
    images = images_of(DaliDecoder(2, 1, 4), iter([request]))
    assert torch.equal(images, images_of(CpuDecoder(1, 1), iter([request])))
    assert torch.equal(images[1], images[0].flip(2))


@needs_dali
def test_the_narrowest_windows_are_cut_exactly(make_photo: Callable[..., Any]) -> None:
    requests = [request for size in range(1, 5) for request in narrow_requests(make_photo, size, size)]
    found = DaliDecoder(2, 1, max(map(len, requests))).decode(iter(requests))
    for decoded, expected in zip(found, CpuDecoder(2, 1).decode(iter(requests)), strict=True):
        assert not decoded.errors
        assert torch.equal(decoded.images, expected.images)


@needs_dali
def test_resized_images_agree_with_the_cpu_decoder(train_index: Index) -> None:
    images = images_of(DaliDecoder(2, 1, 60), requests_for(train_index, [60]))
    difference = (images.int() - images_of(CpuDecoder(1, 1), requests_for(train_index, [60])).int()).abs()
    assert difference[:, :, 1:-1, 1:-1].max() <= INTERIOR
    assert difference.max() <= BORDER
    assert difference.float().mean() <= MEAN


@needs_dali
def test_images_are_bytes_in_channels_last_memory(train_index: Index) -> None:
    images = images_of(DaliDecoder(1, 1, 8), requests_for(train_index, [5]))
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert images.is_contiguous(memory_format=torch.channels_last)


@needs_dali
def test_a_sample_depends_neither_on_its_batch_nor_on_threads_nor_on_reading_ahead(train_index: Index) -> None:
    expected = images_of(DaliDecoder(1, 1, 24), requests_for(train_index, [24]))
    for num_threads, prefetch, sizes in ((2, 0, [1] * 24), (3, 2, [7, 7, 7, 3]), (1, 4, [1, 20, 3])):
        assert torch.equal(
            images_of(DaliDecoder(num_threads, prefetch, 24), requests_for(train_index, sizes)), expected
        )


@needs_dali
def test_requests_may_differ_in_resolution(photos: list[bytes]) -> None:
    requests = [request_of([photos[0]], [(0, 0, size, size)], resolution=size) for size in (16, 40, 24)]
    for request, decoded in zip(requests, DaliDecoder(1, 2, 1).decode(iter(requests)), strict=True):
        [expected] = CpuDecoder(1, 1).decode(iter([request]))
        assert torch.equal(decoded.images, expected.images)


@needs_dali
def test_kept_images_stay_as_they_are(train_index: Index) -> None:
    decoding = DaliDecoder(2, 2, 4).decode(requests_for(train_index, [4] * 10))
    kept, copies = [], []
    for decoded in decoding:
        kept.append(decoded.images)
        copies.append(decoded.images.clone())
    del decoding
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@needs_dali
@pytest.mark.parametrize("content", [None, b"", b"404 not found", "cut", "garbled"])
def test_a_broken_image_is_named_and_alters_no_other(content: bytes | str | None, photos: list[bytes]) -> None:
    broken = content if not isinstance(content, str) else photos[3][: len(photos[3]) // 2]
    if content == "garbled":  # a table of codes, which only decoding finds
        table = photos[3].index(b"\xff\xc4") + 5
        broken = photos[3][:table] + b"\xff" * 16 + photos[3][table + 16 :]
    window = (4, 5, 33, 35)
    good, bad = request_of(photos[:3], [window] * 3), request_of([photos[0], broken, photos[2]], [window] * 3)
    first, second, third, fourth = DaliDecoder(2, 3, 3).decode(iter([good, good, bad, good]))
    assert list(third.errors) == [1]
    assert str(third.errors[1]).startswith(f"image-{FIRST_ID + 1}.jpg (sample {FIRST_ID + 1}): ")
    assert not third.images[1].any()
    assert torch.equal(third.images[::2], first.images[::2])
    for other in (second, fourth):
        assert not other.errors
        assert torch.equal(other.images, first.images)


@needs_dali
def test_what_dali_refuses_and_pillow_reads_is_decoded_by_pillow(
    photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    webp = io.BytesIO()
    Image.open(io.BytesIO(photos[1])).save(webp, "GIF")  # DALI does not know it
    contents = [photos[0], webp.getvalue(), photos[2]]
    request = request_of(contents, [(1, 2, 32, 32)] * 3)
    expected = images_of(CpuDecoder(1, 1), iter([request]))
    monkeypatch.setattr(BatchRequest, "encoded", lambda self, number: (contents[number], True))
    assert torch.equal(images_of(DaliDecoder(2, 1, 3), iter([request, request])), expected.repeat(2, 1, 1, 1))


@needs_dali
def test_an_image_that_is_smaller_than_its_window_is_named(photos: list[bytes]) -> None:
    [decoded] = DaliDecoder(1, 1, 1).decode(iter([request_of(photos[:1], [(30, 0, 31, 8)])]))
    assert "is too small for its window" in str(decoded.errors[0])


@needs_dali
@pytest.mark.parametrize("num_good", [0, 1, 4])
@pytest.mark.parametrize("kind", [DataError, RuntimeError])
def test_an_error_of_the_requests_comes_after_the_images_before_it(
    kind: Callable[..., Exception], num_good: int, train_index: Index
) -> None:
    failure = kind("/data", "the index is gone")

    def requests() -> Iterator[BatchRequest]:
        yield from requests_for(train_index, [2] * num_good)
        raise failure

    decoding = DaliDecoder(1, 2, 2).decode(requests())
    for _ in range(num_good):
        next(decoding)
    with pytest.raises((DataError, RuntimeError)) as caught:
        next(decoding)
    assert caught.value is failure


@needs_dali
def test_closing_early_ends_all_threads(train_index: Index) -> None:
    before = num_threads()
    decoding = DaliDecoder(4, 2, 4).decode(requests_for(train_index, [4] * 100))
    next(decoding)
    assert num_threads() >= before + 4
    decoding.close()
    assert num_threads() == before


@needs_dali
def test_a_broken_image_leaves_no_threads(photos: list[bytes]) -> None:
    before = num_threads()
    window = (0, 0, 8, 8)
    requests = [request_of([photos[0]], [window]), request_of([photos[0][:600]], [window])]
    assert [len(decoded.errors) for decoded in DaliDecoder(4, 2, 4).decode(iter(requests))] == [0, 1]
    assert num_threads() == before


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each pipeline that is built."""
    sizes: list[int] = []
    defined = decode_dali._defined

    def noted(decoder: DaliDecoder, *arguments: Any) -> Any:
        sizes.append(decoder.max_batch_size)
        return defined(decoder, *arguments)

    monkeypatch.setattr(decode_dali, "_defined", noted)
    return sizes


@needs_dali
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_decoder_keeps_its_pipeline_for_the_next_call(built: list[int], prefetch: int, train_index: Index) -> None:
    decoder = DaliDecoder(2, prefetch, 4)
    for sizes in ([4, 4, 2], [4], [], [1] * 7):
        found = [decoded.images for decoded in decoder.decode(requests_for(train_index, sizes))]
        fresh = [decoded.images for decoded in DaliDecoder(1, 1, 4).decode(requests_for(train_index, sizes))]
        assert len(found) == len(sizes)
        assert all(torch.equal(one, other) for one, other in zip(found, fresh, strict=True))
    assert len(built) == 1 + 4  # the decoder's, and those of the fresh ones


@needs_dali
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_call_that_ends_early_leaves_the_pipeline_usable(built: list[int], taken: int, train_index: Index) -> None:
    decoder = DaliDecoder(2, 3, 4)
    for _ in range(3):
        decoding = decoder.decode(requests_for(train_index, [4] * 20))
        for _ in range(taken):
            next(decoding)
        decoding.close()
    images = images_of(decoder, requests_for(train_index, [3, 4]))
    assert len(built) == 1
    assert torch.equal(images, images_of(DaliDecoder(1, 1, 4), requests_for(train_index, [3, 4])))


@needs_dali
def test_broken_images_that_nobody_took_do_not_reach_the_next_call(photos: list[bytes], train_index: Index) -> None:
    window = (4, 5, 33, 35)
    table = photos[3].index(b"\xff\xc4") + 5
    broken = photos[3][:table] + b"\xff" * 16 + photos[3][table + 16 :]
    decoder = DaliDecoder(2, 3, 4)
    decoding = decoder.decode(iter([request_of([content], [window]) for content in (photos[0], broken, broken)]))
    next(decoding)
    decoding.close()
    images = images_of(decoder, requests_for(train_index, [4]))
    assert torch.equal(images, images_of(DaliDecoder(1, 1, 4), requests_for(train_index, [4])))


@needs_dali
def test_a_pipeline_that_only_fails_after_an_early_end_is_not_asked_for_ever(
    built: list[int], train_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the GPU."""
    decoder, runs = DaliDecoder(1, 2, 4), 0
    decoding = decoder.decode(requests_for(train_index, [4] * 5))
    next(decoding)
    decoding.close()

    def run(pipeline: decode_dali.Pipeline) -> Any:
        nonlocal runs
        runs += 1
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(decode_dali.Pipeline, "_run", run)
    with pytest.raises(RuntimeError, match="DALI does not end the batches of an earlier source") as caught:
        next(decoder.decode(requests_for(train_index, [4])))
    assert str(caught.value.__cause__) == "CUDA error"
    assert runs < 10
    monkeypatch.undo()
    assert len(list(decoder.decode(requests_for(train_index, [4])))) == 1  # by another pipeline


@needs_dali
def test_two_calls_at_once_have_a_pipeline_each(built: list[int], train_index: Index) -> None:
    decoder = DaliDecoder(1, 1, 4)
    one, other = (decoder.decode(requests_for(train_index, [4, 4])) for _ in range(2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))
    assert len(built) == 2


@needs_dali
def test_after_an_error_of_the_requests_the_next_call_starts_anew(built: list[int], train_index: Index) -> None:
    decoder = DaliDecoder(1, 2, 4)

    class Gone(BatchRequest):
        def encoded(self, number: int) -> tuple[bytes, bool]:
            raise MemoryError

    [request] = requests_for(train_index, [2])
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    with pytest.raises(MemoryError):
        list(decoder.decode(iter([request, Gone(**fields), request])))
    images = images_of(decoder, requests_for(train_index, [4]))
    assert len(built) == 2
    assert torch.equal(images, images_of(DaliDecoder(1, 1, 4), requests_for(train_index, [4])))


@needs_dali
def test_threads_end_with_the_decoder(train_index: Index) -> None:
    before = num_threads()
    decoder = DaliDecoder(4, 2, 4)
    list(decoder.decode(requests_for(train_index, [4, 4])))
    assert num_threads() >= before + 4
    del decoder
    assert len(list(Path("/proc/self/task").iterdir())) == before  # by counting references: no cycle holds it


# --- settings of a GPU


@needs_dali
def test_whole_images_that_are_cut_have_the_pixels_of_regions(train_index: Index, photos: list[bytes]) -> None:
    windows = [(0, 0, 40, 50), (7, 11, 31, 22), (0, 49, 1, 1), (39, 3, 1, 40)]
    for requests in (lambda: requests_for(train_index, [24]), lambda: iter([request_of(photos, windows)])):
        whole = images_of(DaliDecoder(2, 1, 24, regions=False), requests())
        assert torch.equal(whole, images_of(DaliDecoder(2, 1, 24), requests()))


def options_on_a_gpu(monkeypatch: pytest.MonkeyPatch, decoder: DaliDecoder, small: bool = False) -> tuple[Any, Any]:
    """The options of the pipeline and of its decoder on GPU 0. DALI itself checks them, also without a GPU."""
    import nvidia.dali

    dali: Any = nvidia.dali
    given: dict[str, Any] = {}
    for name in ("image_slice", "image"):
        real = getattr(dali.fn.decoders, name)
        monkeypatch.setattr(
            dali.fn.decoders,
            name,
            lambda *inputs, _real=real, _name=name, **options: (
                given.update(options, operator=_name),
                _real(*inputs, **options),
            )[1],
        )
    pipeline = decode_dali._defined(decoder, lambda: None, small)  # type: ignore[arg-type,return-value]
    return pipeline, given


@needs_dali
@pytest.mark.parametrize("regions", [True, False])
def test_by_default_no_thread_is_bound_and_buffers_fit_imagenet(monkeypatch: pytest.MonkeyPatch, regions: bool) -> None:
    pipeline, given = options_on_a_gpu(monkeypatch, DaliDecoder(3, 2, 8, 0, regions=regions))
    assert given["operator"] == ("image_slice" if regions else "image")
    assert (given["device"], given["affine"], pipeline.set_affinity) == ("mixed", False, False)
    assert (pipeline.device_id, pipeline.num_threads, pipeline.prefetch_queue_depth) == (0, 3, 2)
    assert given["device_memory_padding"] == 202 * 2**20
    assert given["host_memory_padding"] == 135 * 2**20
    assert "hw_decoder_load" not in given


@needs_dali
def test_the_keys_of_data_dali_reach_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DaliRecipe(hw_decoder_load=0.9, device_padding_mib=5, host_padding_mib=3, affinity=True)
    pipeline, given = options_on_a_gpu(monkeypatch, DaliDecoder(3, 2, 8, 0, settings))
    assert given["hw_decoder_load"] == 0.9
    assert (given["device_memory_padding"], given["host_memory_padding"]) == (5 * 2**20, 3 * 2**20)
    assert (given["affine"], pipeline.set_affinity) == (True, True)


@needs_dali
def test_the_pipeline_that_looks_for_a_broken_image_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, given = options_on_a_gpu(monkeypatch, DaliDecoder(8, 4, 8, 0), small=True)
    assert (given["device_memory_padding"], given["host_memory_padding"]) == (0, 0)
    assert (pipeline.num_threads, pipeline.prefetch_queue_depth) == (1, 1)


@needs_dali
def test_on_a_gpu_the_stream_waits_that_is_current_when_a_batch_is_taken(
    monkeypatch: pytest.MonkeyPatch, train_index: Index
) -> None:
    """With a pipeline on the CPU behind the decoder of a GPU, and streams that are names."""
    streams, current = [], "first"

    class Streamed:
        def __init__(self, pipeline: Any) -> None:
            self._pipeline = pipeline

        def __getattr__(self, name: str) -> Any:
            return getattr(self._pipeline, name)

        def run(self, stream: object) -> Any:
            streams.append(stream)
            return self._pipeline.run()

    defined = decode_dali._defined

    def on_the_cpu(decoder: DaliDecoder, *arguments: Any) -> Any:
        return Streamed(defined(DaliDecoder(1, 1, decoder.max_batch_size), *arguments))

    monkeypatch.setattr(decode_dali, "_defined", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: (device, current))
    decoding = DaliDecoder(1, 1, 4, 3).decode(requests_for(train_index, [4, 4]))
    next(decoding)
    current = "second"
    next(decoding)
    assert streams == [(3, "first"), (3, "second")]


@needs_dali
def test_memory_stays_flat_over_500_batches(train_index: Index) -> None:
    assert growth(DaliDecoder(2, 2, 4), train_index) < 4 * 2**20


@needs_dali
def test_no_requests_give_no_images() -> None:
    assert list(DaliDecoder(1, 1, 1).decode(iter([]))) == []


def test_without_dali_the_recipe_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_dali, "is_installed", lambda: False)
    with pytest.raises(MissingPackage, match=r"data\.decoder: needs NVIDIA DALI.*pip install") as caught:
        DaliDecoder(1, 1, 1)
    assert caught.value.key == "data.decoder"

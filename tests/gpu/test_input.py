"""Images on a GPU: by DALI's `mixed` decoders and by decoders on the CPU, in the streams in which they are used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from smooth_photos import write_photos

from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decoding.choice import dali_is_installed
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.dali import DaliDecoder
from resnet_dist.data.decoding.region_check import region_check
from resnet_dist.data.decoding.requests import BatchRequest, Decoder
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.schema import DaliRecipe, DataRecipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
needs_dali = pytest.mark.skipif(not dali_is_installed(), reason="needs a GPU and NVIDIA DALI")

GPU = torch.device("cuda", 0)
SMALL = DaliRecipe(device_padding_mib=16, host_padding_mib=8)
MEAN = 2.0  # levels of 255 between nvJPEG with DALI's resize and the decoder on the CPU, on average over smooth photos


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_image_folder(write_photos(tmp_path_factory.mktemp("photos")), "train")


def requests(index: Index, sizes: list[int]) -> Iterator[BatchRequest]:
    first = 0
    for size in sizes:
        positions = np.arange(first, first + size, dtype=np.int64)
        ids = positions % len(index)
        windows = training_windows(index.heights[ids], index.widths[ids], positions, 0, (0.08, 1.0), (3 / 4, 4 / 3))
        yield BatchRequest.of(index, files_of(index), positions, ids, windows, flips(positions, 0), 64)
        first += size


def decoded(decoder: Decoder, index: Index, sizes: list[int]) -> list[torch.Tensor]:
    return [batch.images.clone() for batch in decoder.decode(requests(index, sizes))]


def dali(*, regions: bool = True) -> DaliDecoder:
    return DaliDecoder(2, 3, 16, 0, SMALL, regions)


@needs_dali
def test_regions_are_decoded_on_this_gpu_or_a_child_process_says_why_not() -> None:
    check = region_check(DataRecipe(root="/data", decoder="dali", dali=SMALL), GPU)
    assert check is not None
    print(f"decoding regions with DALI on {torch.cuda.get_device_name()}: {check.problem or 'works'}")


def ways() -> list[bool]:
    """Whole images, and regions if they can be decoded here."""
    check = region_check(DataRecipe(root="/data", decoder="dali", dali=SMALL), GPU)
    return [False, *([True] if check is not None and check.problem is None else [])]


@needs_dali
def test_mixed_decoding_gives_the_images_of_the_cpu(index: Index) -> None:
    expected = torch.cat(decoded(CpuDecoder(2, 2), index, [16, 16, 5])).float()
    for regions in ways():
        found = torch.cat(decoded(dali(regions=regions), index, [16, 16, 5]))
        assert found.is_cuda
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found.cpu().float() - expected).abs().mean() <= MEAN


@needs_dali
def test_a_stream_that_is_busy_waits_for_its_images(index: Index) -> None:
    """The host goes on at once; what a stream computes from the images is right all the same."""
    sizes = [16] * 12
    expected = [images.cpu() for images in decoded(dali(regions=False), index, sizes)]
    busy = torch.randn(2048, 2048, device=GPU)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        sums = []
        with torch.cuda.stream(stream):
            for batch in dali(regions=False).decode(requests(index, sizes)):
                for _ in range(4):
                    busy @ busy
                sums.append(batch.images.to(torch.int64).sum((1, 2, 3)))
        torch.cuda.synchronize()
        for found, images in zip(sums, expected, strict=True):
            assert torch.equal(found.cpu(), images.to(torch.int64).sum((1, 2, 3)))


@needs_dali
def test_a_kept_pipeline_gives_the_same_images_again_also_after_an_early_end(index: Index) -> None:
    decoder = dali(regions=False)
    first = decoded(decoder, index, [16, 7])
    decoding = decoder.decode(requests(index, [16] * 5))
    next(decoding)
    decoding.close()
    again = decoded(decoder, index, [16, 7])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_pinned_memory_is_not_filled_again_before_it_is_copied(index: Index) -> None:
    """The copies wait behind other work of their stream while the decoder is batches ahead."""
    sizes = [16] * 16
    expected = decoded(CpuDecoder(2, 2), index, sizes)
    stream, found, pointers = torch.cuda.Stream(), [], set()
    busy = torch.randn(2048, 2048, device=GPU)
    torch.cuda.synchronize()
    for batch in CpuDecoder(2, 2, pinned=True).decode(requests(index, sizes)):
        assert batch.images.is_pinned()
        pointers.add(batch.images.data_ptr())
        with torch.cuda.stream(stream):
            for _ in range(8):
                busy @ busy
            found.append(batch.images.to(GPU, non_blocking=True))
        if len(found) % 4 == 0:
            stream.synchronize()
    stream.synchronize()
    for ours, images in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), images)
    assert len(pointers) < len(sizes)  # some were used again

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from resnet_dist.data import BatchRequest, Index, Stream, loader
from resnet_dist.data.decoding import choice
from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding import regions as decode_regions
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.loader import (
    HostBatch,
    decoder_for,
    evaluation_batches,
    normalise,
    training_batches,
)
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DaliRecipe, DataRecipe

RECIPE = DataRecipe(root="/unused", resolution=16)
DECODER = CpuDecoder(num_threads=2, prefetch=2)
SEED = 5


@dataclass
class Recorder:
    """A decoder that decodes nothing: it keeps the requests and reads `ahead` of its consumer."""

    ahead: int = 0
    requests: list[BatchRequest] = field(default_factory=list)
    closed: bool = False

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        waiting: list[BatchRequest] = []
        try:
            for request in requests:
                self.requests.append(request)
                waiting.append(request)
                if len(waiting) > self.ahead:
                    yield Decoded(waiting.pop(0), torch.zeros(1))
            for request in waiting:
                yield Decoded(request, torch.zeros(1))
        finally:
            self.closed = True


def train(
    index: Index,
    layout: BatchLayout,
    rank: int = 0,
    first_step: int = 0,
    num_steps: int = 1,
    decoder: Recorder | CpuDecoder = DECODER,
    recipe: DataRecipe = RECIPE,
) -> Iterator[HostBatch]:
    stream = Stream(len(index), SEED)
    steps = range(first_step, first_step + num_steps)
    return training_batches(index, files_of(index), stream, layout, rank, recipe, SEED, decoder, steps)


def samples(batches: Iterator[HostBatch]) -> dict[int, tuple[int, bytes]]:
    """Position -> label and pixels."""
    found: dict[int, tuple[int, bytes]] = {}
    for batch in batches:
        for position, label, image in zip(batch.positions.tolist(), batch.labels.tolist(), batch.images, strict=True):
            assert position not in found
            found[position] = (label, image.contiguous().numpy().tobytes())
    return found


def test_a_step_takes_its_positions_of_the_stream(train_index: Index) -> None:
    batches = list(train(train_index, BatchLayout(size=8, num_micro_batches=2), first_step=3, num_steps=2))
    assert [batch.positions.tolist() for batch in batches] == [
        [24, 25, 26, 27],
        [28, 29, 30, 31],
        [32, 33, 34, 35],
        [36, 37, 38, 39],
    ]


def test_batches_hold_images_labels_and_positions(train_index: Index) -> None:
    [batch] = train(train_index, BatchLayout(size=8))
    assert (batch.images.shape, batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((8,), torch.int64)
    assert (batch.positions.shape, batch.positions.dtype) == ((8,), torch.int64)
    ids = Stream(len(train_index), SEED).sample_ids(batch.positions.numpy())
    assert batch.labels.tolist() == train_index.labels[ids].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_workers_and_micro_batches_change_no_sample(
    world_size: int, num_micro_batches: int, train_index: Index
) -> None:
    # 3 steps of 10 over 12 images: epochs end inside of batches.
    expected = samples(train(train_index, BatchLayout(size=10), num_steps=3))
    layout = BatchLayout(size=10, num_micro_batches=num_micro_batches, world_size=world_size)
    found: dict[int, tuple[int, bytes]] = {}
    for rank in range(world_size):
        own = samples(train(train_index, layout, rank, num_steps=3))
        assert not own.keys() & found.keys()
        found |= own
    assert found == expected
    assert sorted(found) == list(range(30))


def test_each_epoch_sees_every_image_once(train_index: Index) -> None:
    recorder = Recorder()
    list(train(train_index, BatchLayout(size=9), num_steps=4, decoder=recorder))
    ids = np.concatenate([request.sample_ids for request in recorder.requests])
    for epoch in range(3):
        assert sorted(ids[12 * epoch : 12 * (epoch + 1)].tolist()) == list(range(12))


def test_resume_continues_at_the_next_step(train_index: Index) -> None:
    layout = BatchLayout(size=7)
    whole = samples(train(train_index, layout, num_steps=6))
    resumed = samples(train(train_index, layout, first_step=0, num_steps=4))
    resumed |= samples(train(train_index, layout, first_step=4, num_steps=2))
    assert resumed == whole


def test_a_step_far_away_is_reached_at_once(train_index: Index) -> None:
    [batch] = train(train_index, BatchLayout(size=8), first_step=10**15)
    assert batch.positions[0] == 8 * 10**15


def test_an_image_is_cropped_anew_in_each_epoch(train_index: Index) -> None:
    recorder = Recorder()
    list(train(train_index, BatchLayout(size=12), num_steps=2, decoder=recorder))
    first, second = ({i: tuple(w) for i, w in zip(r.sample_ids, r.windows, strict=True)} for r in recorder.requests)
    assert sum(first[i] == second[i] for i in range(12)) == 0


def test_flips_can_be_turned_off(train_index: Index) -> None:
    with_flips, without = Recorder(), Recorder()
    list(train(train_index, BatchLayout(size=12), decoder=with_flips))
    list(train(train_index, BatchLayout(size=12), decoder=without, recipe=replace(RECIPE, flip=False)))
    assert with_flips.requests[0].flips.any()
    assert not without.requests[0].flips.any()
    assert np.array_equal(with_flips.requests[0].windows, without.requests[0].windows)


def test_a_decoder_that_reads_ahead_changes_no_label(train_index: Index) -> None:
    layout = BatchLayout(size=6)

    def labels(ahead: int) -> list[list[int]]:
        return [batch.labels.tolist() for batch in train(train_index, layout, num_steps=5, decoder=Recorder(ahead))]

    assert labels(0) == labels(1) == labels(10)


def test_nothing_is_asked_for_before_it_is_needed_and_closing_closes_the_decoder(train_index: Index) -> None:
    recorder = Recorder()
    batches = train(train_index, BatchLayout(size=6), num_steps=10**9, decoder=recorder)
    assert recorder.requests == []
    next(batches)
    assert len(recorder.requests) == 1
    batches.close()  # type: ignore[attr-defined]
    assert recorder.closed


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 2), (4, 64), (9, 1)])
def test_evaluation_sees_every_sample_once_and_in_order(world_size: int, batch_size: int, val_index: Index) -> None:
    positions: list[int] = []
    for rank in range(world_size):
        for batch in evaluation_batches(val_index, files_of(val_index), world_size, rank, batch_size, RECIPE, DECODER):
            assert len(batch.positions) <= batch_size
            assert batch.labels.tolist() == val_index.labels[batch.positions.numpy()].tolist()
            positions += batch.positions.tolist()
    assert positions == list(range(len(val_index)))


def test_evaluation_sees_the_centre_and_flips_nothing(val_index: Index) -> None:
    recorder = Recorder()
    list(evaluation_batches(val_index, files_of(val_index), 1, 0, 64, RECIPE, recorder))
    [request] = recorder.requests
    assert not request.flips.any()
    assert request.windows[0].tolist() == [4, 14, 52, 52]  # 60 × 80: 0.875 × 60 is 52.5, halves go to even


def test_evaluation_pixels_depend_neither_on_workers_nor_on_the_batch_size(val_index: Index) -> None:
    expected = samples(evaluation_batches(val_index, files_of(val_index), 1, 0, 6, RECIPE, DECODER))
    found: dict[int, tuple[int, bytes]] = {}
    for rank in range(4):
        found |= samples(evaluation_batches(val_index, files_of(val_index), 4, rank, 1, RECIPE, DECODER))
    assert found == expected


def images_of_all_levels() -> Tensor:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    return levels.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_normalise_is_torchvisions(dtype: torch.dtype, tolerance: float) -> None:
    images = images_of_all_levels()
    expected = normalize(images.double() / 255, list(RECIPE.mean), list(RECIPE.std))
    normalised = normalise(images, RECIPE.mean, RECIPE.std, dtype)
    assert normalised.dtype == dtype
    assert torch.allclose(normalised.double(), expected, rtol=0, atol=tolerance)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_rounded_once(dtype: torch.dtype) -> None:
    images = images_of_all_levels()
    in_float32 = normalise(images, RECIPE.mean, RECIPE.std, torch.float32)
    assert torch.equal(normalise(images, RECIPE.mean, RECIPE.std, dtype), in_float32.to(dtype))


def test_normalise_leaves_the_images_as_they_are() -> None:
    images = images_of_all_levels()
    before = images.clone()
    normalise(images, RECIPE.mean, RECIPE.std, torch.float32)
    assert torch.equal(images, before)


def kind_of_decoder(decoder: str, device: str) -> type:
    recipe = replace(RECIPE, decoder=decoder)  # type: ignore[arg-type]
    return type(decoder_for(recipe, device=torch.device(device), num_threads=3, max_batch_size=8))


@pytest.mark.parametrize("version", [None, "0.9"])
def test_auto_on_a_cpu_uses_nvimagecodec_where_it_is_installed(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_regions, "version", lambda: version)
    recipe = replace(RECIPE, prefetch=7)
    decoder = decoder_for(recipe, device=torch.device("cpu"), num_threads=3, max_batch_size=8)
    assert decoder == CpuDecoder(num_threads=3, prefetch=7, regions=version is not None)


def test_torchvision_is_pillow_for_everything() -> None:
    recipe = replace(RECIPE, decoder="torchvision")
    assert decoder_for(recipe, device=torch.device("cpu"), num_threads=3, max_batch_size=8) == CpuDecoder(3, 2)


@pytest.mark.parametrize(
    ("decoder", "on_gpu", "dali", "version", "expected"),
    [
        ("auto", False, True, "0.9", r"nvImageCodec 0\.9 on the CPU \(ordinary JPEGs\), Pillow [0-9.]+ \(others\)"),
        ("auto", False, False, None, r"Pillow [0-9.]+ on the CPU, since nvImageCodec is not installed"),
        ("auto", True, True, "0.9", r"NVIDIA DALI on the GPU \(ordinary JPEGs\), Pillow [0-9.]+ \(others\)"),
        ("auto", True, False, "0.9", r"nvImageCodec 0\.9 on the CPU \(ordinary JPEGs\), Pillow [0-9.]+ \(others\)"),
        ("dali", False, True, "0.9", r"NVIDIA DALI on the CPU \(ordinary JPEGs\), Pillow [0-9.]+ \(others\)"),
        ("torchvision", True, True, "0.9", r"Pillow [0-9.]+ on the CPU"),
    ],
)
def test_what_decodes_which_images_is_said(
    decoder: str, on_gpu: bool, dali: bool, version: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: dali)
    monkeypatch.setattr(decode_regions, "version", lambda: version)
    recipe = replace(RECIPE, decoder=decoder)  # type: ignore[arg-type]
    assert re.fullmatch(expected, choice.describe_decoders(recipe, on_gpu=on_gpu))


def test_auto_is_dali_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: True)
    assert kind_of_decoder("auto", "cuda:1") is decode_dali.DaliDecoder
    decoder = decoder_for(RECIPE, device=torch.device("cuda:1"), num_threads=3, max_batch_size=8)
    assert isinstance(decoder, decode_dali.DaliDecoder)
    assert (decoder.num_threads, decoder.prefetch, decoder.max_batch_size, decoder.device_id) == (3, 2, 8, 1)


def test_on_a_gpu_dali_gets_its_keys_and_whether_it_may_decode_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: True)
    recipe = replace(RECIPE, dali=DaliRecipe(device_padding_mib=7))
    for regions in (True, False):
        device = torch.device("cuda:1")
        decoder = decoder_for(recipe, device=device, num_threads=3, max_batch_size=8, regions=regions)
        assert isinstance(decoder, decode_dali.DaliDecoder)
        assert (decoder.settings, decoder.regions) == (recipe.dali, regions)


def test_a_decoder_on_the_cpu_fills_pinned_memory_for_a_gpu() -> None:
    recipe = replace(RECIPE, decoder="torchvision")
    for device, pinned in (("cpu", False), ("cuda:0", True)):
        decoder = decoder_for(recipe, device=torch.device(device), num_threads=3, max_batch_size=8)
        assert decoder == CpuDecoder(3, 2, pinned=pinned)


def test_a_named_decoder_is_taken_whatever_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: True)
    assert kind_of_decoder("torchvision", "cuda:0") is CpuDecoder
    assert kind_of_decoder("dali", "cpu") is decode_dali.DaliDecoder


def test_auto_with_a_gpu_but_without_dali_falls_back_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: False)
    loader._warn_without_dali.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert kind_of_decoder("auto", "cuda:0") is CpuDecoder
        assert kind_of_decoder("auto", "cuda:0") is CpuDecoder
    [record] = caplog.records
    assert "DALI is not installed" in record.getMessage()

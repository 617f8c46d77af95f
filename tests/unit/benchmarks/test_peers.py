"""All peers of a benchmark train; those with our settings train the same model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import gpu_input
from benchmarks.gpu_input import photo, write_photos
from benchmarks.group_norms import compare_norms, group_of_one
from benchmarks.kernels import OTHER, kind_of
from benchmarks.measure import FAILED, Run
from benchmarks.peers import MinimalLoop, OurTrainer, Setting, TimmLoop, TorchvisionLoop, synthetic
from benchmarks.variants import timed
from resnet_dist.data.decoding.region_check import warn_of
from resnet_dist.data.decoding.requests import Decoder
from resnet_dist.data.loader import HostBatch
from resnet_dist.recipe.schema import DataRecipe

CPU = torch.device("cpu")
SETTING = Setting(batch=4, resolution=32, model="resnet18", num_classes=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_ours_and_the_minimal_loop_compute_the_same() -> None:
    batches = synthetic(SETTING)
    ours, minimal = OurTrainer(SETTING.recipe(), CPU, batches), MinimalLoop(SETTING, batches)
    for steps in (1, 2):
        ours(steps)
        minimal(steps)
    theirs = minimal.module.state_dict()
    for name, value in ours.engine.module.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_a_peer_that_raises_an_error_is_left_out_with_its_place() -> None:
    def broken() -> Run:
        raise RuntimeError("no kernel image is available\nmore of it")

    found = timed({"broken": broken, "empty": lambda: lambda steps: None}, CPU, rounds=2, steps=1, warm_up_steps=1)
    assert list(found.times_s) == ["empty"]
    assert found.absent["broken"].startswith(f"{FAILED}RuntimeError: no kernel image is available (test_peers.py:")


def test_batches_from_an_iterator_are_not_kept() -> None:
    """An input of files has no end."""
    made: list[weakref.ref[HostBatch]] = []

    def batches() -> Iterator[HostBatch]:
        while True:
            [batch] = synthetic(SETTING, 1)
            made.append(weakref.ref(batch))
            yield batch

    trainer = OurTrainer(SETTING.recipe(), CPU, batches())
    trainer(3)
    gc.collect()
    assert made[0]() is None


@pytest.mark.parametrize("problem", [None, "a trial in a child process ended with SIGSEGV"])
def test_dali_decodes_regions_only_if_a_child_process_has_done_so(
    problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(tmp_path, 4)
    data = DataRecipe(root=str(tmp_path), resolution=32, decoder="torchvision")
    decoder_for, regions = gpu_input.decoder_for, list[bool]()

    def noted(recipe: DataRecipe, **given: Any) -> Decoder:
        regions.append(given["regions"])
        return decoder_for(recipe, **given)

    monkeypatch.setattr(gpu_input, "decoder_for", noted)
    monkeypatch.setattr(gpu_input, "region_check", lambda data, device: SimpleNamespace(problem=problem))
    warn_of.cache_clear()
    next(gpu_input._batches(SETTING, data))
    assert regions == [problem is None]
    assert [str(problem) in message for message in caplog.messages] == [True] * (problem is not None)


def test_photos_have_two_classes_and_are_always_the_same(tmp_path: Path) -> None:
    write_photos(tmp_path, 3)
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.jpg"))
    assert [str(file) for file in files] == [
        *("train/class-0/00000.jpg", "train/class-0/00002.jpg", "train/class-1/00001.jpg")
    ]
    content = (tmp_path / "train" / "class-1" / "00001.jpg").read_bytes()
    assert content == photo(1)
    assert 80_000 < len(content) < 120_000
    with Image.open(tmp_path / "train" / "class-1" / "00001.jpg") as image:
        assert image.size == (500, 375)


def test_timms_evaluation_leaves_out_what_its_sampler_repeats() -> None:
    """docs/comparison.md says so."""
    evaluator = pytest.importorskip("timm.task.evaluator")
    sampler = pytest.importorskip("timm.data.distributed_sampler").OrderedDistributedSampler
    ranks = [sampler(range(5), num_replicas=2, rank=rank) for rank in (0, 1)]
    assert sorted(number for each in ranks for number in each) == [0, 0, 1, 2, 3, 4]
    counted = 0
    for each in ranks:
        found = evaluator.ClassificationEvaluator(max_samples=each.num_valid_samples)
        found.update(torch.zeros(len(each), 7), torch.zeros(len(each), dtype=torch.int64))
        counted += int(found.counts[0])
    assert counted == 5


def test_torchvisions_loop_reads_the_loss_of_every_step() -> None:
    loop = TorchvisionLoop(SETTING, synthetic(SETTING, 1))
    loop(1)
    first = loop.seen[0]
    loop(1)
    assert loop.seen[0] == pytest.approx(first + loop.last_loss.item(), rel=1e-6)


def test_timms_step_trains() -> None:
    loop = TimmLoop(SETTING, synthetic(SETTING, 1))
    loop(1)
    first = loop.last_loss
    loop(1)
    assert loop.last_loss < first


def test_batches_have_the_format_of_a_decoder() -> None:
    first, second = synthetic(SETTING)
    assert first.images.dtype is torch.uint8
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.images.shape == (4, 3, 32, 32)
    assert not torch.equal(first.images, second.images)


def test_our_batch_norm_is_exchanged_in_a_group_of_one() -> None:
    with group_of_one(CPU):
        [line, *_] = compare_norms(CPU, batch=2, resolution=32, rounds=1, steps=1)
    assert set(line["times_s"]) == {"ours", "local"}
    assert line["absent"] == {"SyncBatchNorm": "it does not support CPU tensors"}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "batch norm"),
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel<...>", "batch norm"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", "convolutions"),
        ("cudnn::engines_precompiled::nchwToNhwcKernel<__half>", "layout changes"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("triton_poi_fused_relu_threshold_backward_3", "fused (Inductor)"),
        ("void at::native::multi_tensor_apply_kernel<...>", "optimizer"),
        ("nvjet_hsh_128x64_64x8_v_bz_TNN", "matrix products"),
        ("something_new", OTHER),
    ],
)
def test_kernels_are_classified_by_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind

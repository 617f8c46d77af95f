"""The conformance suites pass ours, and find what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.data import BatchRequest, crops, index_image_folder
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.storage.files import files_of
from resnet_dist.engines.ddp import DdpEngine, LossSum
from resnet_dist.engines.protocol import MicroBatch, OptimizerState
from resnet_dist.telemetry.step_totals import StepSums
from resnet_dist.testing import check_decoder, check_engine


def test_our_ddp_engine_conforms() -> None:
    check_engine(DdpEngine)
    check_engine(DdpEngine, torch.float32)


class OfMeans(DdpEngine):
    """Averages over micro-batches what should be added up."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, loss_sum: LossSum, **keywords: Any) -> None:
        num = keywords["num_micro_batches"]
        super().__init__(module, optimizer, lambda *arguments: loss_sum(*arguments) / num, **keywords)


class OwnRate(DdpEngine):
    """Ignores the learning rate after the first step."""

    rate = 0.0

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        self.rate = self.rate or learning_rate
        return super().step(micro_batches, self.rate)


class WithoutFactors(DdpEngine):
    """Writes the learning rate itself, without the groups' factors."""

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        for group in self._optimizer.param_groups:
            group["lr_factor"] = 1.0
        return super().step(micro_batches, learning_rate)


class Forgetful(DdpEngine):
    """Does not take up a state."""

    def load_optimizer_state(self, state: object) -> None: ...


class Lenient(DdpEngine):
    """Takes any number of micro-batches."""

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        batches = list(micro_batches)
        self._num_micro_batches = len(batches)
        return super().step(batches, learning_rate)


class Collecting(DdpEngine):
    """Requests all micro-batches before it computes the first one."""

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        return super().step(list(micro_batches), learning_rate)


class Eager(DdpEngine):
    """Updates with the gradients."""

    def gradients(self, micro_batches: Iterable[MicroBatch]) -> StepSums:
        sums = super().gradients(micro_batches)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.sub_(0)
                parameter.view(-1)[0] += self.early
        return sums

    early = 0.0

    def optimizer_state(self) -> OptimizerState:
        self.early = 1e-3  # not before the other checks are over
        return super().optimizer_state()


@pytest.mark.parametrize(
    ("engine", "promise"),
    [
        (Eager, "`gradients` must change nothing, and has changed 0.weight, 0.bias"),
        (OfMeans, "step 1 with num_micro_batches 2: the loss, a sum"),
        (WithoutFactors, "the learning rates of the groups are"),
        (OwnRate, "step 2 with num_micro_batches 1: 0.weight after the update"),
        (Forgetful, "step 3 with num_micro_batches 1"),
        (Lenient, "num_micro_batches 2: a step with 1 must raise ValueError"),
        (Collecting, "each of which must be computed before the next is requested"),
    ],
)
def test_a_broken_engine_is_told_which_promise_it_breaks(engine: type[DdpEngine], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_engine(engine)


@pytest.fixture
def requests(tmp_path: Path, write_images: Callable[[Path], Path]) -> list[BatchRequest]:
    index = index_image_folder(str(write_images(tmp_path / "images")), "train")
    made = []
    for ids in (torch.arange(3).numpy(), torch.arange(3, 5).numpy()):
        windows = crops.evaluation_windows(index.heights[ids], index.widths[ids], 0.875)
        made.append(BatchRequest.of(index, files_of(index), ids, ids, windows, ids % 2 == 0, resolution=8))
    return made


def test_our_decoder_conforms(requests: list[BatchRequest]) -> None:
    check_decoder(CpuDecoder(num_threads=2, prefetch=1), requests)


class Planar:
    """Another memory layout."""

    def decode(self, wanted: Iterator[BatchRequest]) -> Iterator[Decoded]:
        for decoded in CpuDecoder(2, 1).decode(wanted):
            yield replace(decoded, images=decoded.images.contiguous())


class OfBatch:
    """Darkens the images of larger batches."""

    def decode(self, wanted: Iterator[BatchRequest]) -> Iterator[Decoded]:
        for decoded in CpuDecoder(2, 1).decode(wanted):
            yield replace(decoded, images=decoded.images // len(decoded.request))


class Swapping:
    """Mixes the order up."""

    def decode(self, wanted: Iterator[BatchRequest]) -> Iterator[Decoded]:
        yield from list(CpuDecoder(2, 1).decode(wanted))[::-1]


@pytest.mark.parametrize(
    ("decoder", "promise"),
    [(Planar, "channels-last"), (OfBatch, "decoded differently without the other samples"), (Swapping, "the request")],
)
def test_a_broken_decoder_is_told_which_promise_it_breaks(
    decoder: type[Any], promise: str, requests: list[BatchRequest]
) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_decoder(decoder(), requests)


def test_images_that_cannot_be_decoded_are_no_check(requests: list[BatchRequest]) -> None:
    Path(requests[0].name(1)).write_bytes(b"")
    with pytest.raises(AssertionError, match="cannot decode"):
        check_decoder(CpuDecoder(2, 1), requests)

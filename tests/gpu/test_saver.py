"""Saving from a GPU: pinned memory that is reused, and training that continues at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.host_copy import HostBuffers
from resnet_dist.checkpoint.restore import load
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_copies_are_pinned_kept_and_complete_when_the_call_returns() -> None:
    buffers = HostBuffers()
    tensors = {
        "weight": torch.randn(64, 64, 3, 3, device="cuda").to(memory_format=torch.channels_last),
        "count": torch.tensor(7, device="cuda"),
        "on_the_host": torch.randn(5),
    }
    with buffers.copying() as copy:
        copies = {name: copy(tensor) for name, tensor in tensors.items()}
    assert [copied.is_pinned() for copied in copies.values()] == [True, True, False]
    for name, tensor in tensors.items():
        expected = tensor.cpu()
        tensor.zero_()
        assert torch.equal(copies[name], expected)
    with buffers.copying() as copy:
        again = [copy(tensor).data_ptr() for tensor in tensors.values()]
    assert again == [copied.data_ptr() for copied in copies.values()]


def test_a_checkpoint_holds_the_weights_of_its_step_while_the_next_steps_change_them(tmp_path: Path) -> None:
    weight = torch.full((1 << 22,), 1.0, device="cuda")
    saver = Saver(CheckpointOptions(tmp_path), on_event=lambda *event: None)
    saver.reserve([weight])
    for step in range(1, 4):
        saver.save(CheckpointContent(step, {"weight": weight}, {}, {}), wait=False)
        weight += 1
    saver.close()
    for step in range(1, 4):
        assert torch.equal(
            load(tmp_path / f"step-0000000{step}").model()["weight"], torch.full((1 << 22,), float(step))
        )

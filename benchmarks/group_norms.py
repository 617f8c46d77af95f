"""Batch norm with exchanged statistics: ours against torch.nn.SyncBatchNorm, layer by layer and in a whole step.

In a process group of one, in which both are forced to exchange: they would skip it with one worker. The collective
itself takes almost no time, so this measures where the two differ: the arithmetic, the kernel launches and the waits of
the host.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as Exchange

from benchmarks.measure import Run, interleave, time_row
from benchmarks.peers import MinimalLoop, Setting
from resnet_dist.data.loader import HostBatch
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout, SpanGroup

# Channels and, for 224 pixels, side of inputs of ResNet-50's batch norms: its stem, and its four stages' widest.
SHAPES = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
_REFERENCE = 224


def compare_norms(device: torch.device, batch: int, resolution: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Times of forward and backward for each shape, with float32 and bfloat16 inputs. Call it in a group of one."""
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        for channels, side in SHAPES:
            size = max(1, side * resolution // _REFERENCE)
            shape = (batch, channels, size, size)
            lines.append(_compare(device, dtype, shape, rounds, steps))
    return lines


def _compare(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], rounds: int, steps: int
) -> dict[str, Any]:
    images = torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last)
    channels = shape[1]
    peers: dict[str, Run] = {
        "ours": _passes(use_spans(nn.BatchNorm2d(channels), exchanged_spans(shape[0])).to(device), images),
        "local": _passes(nn.BatchNorm2d(channels).to(device), images),
    }
    absent = {}
    if device.type == "cuda":
        peers["SyncBatchNorm"] = _passes(_AlwaysSynchronised(channels).to(device), images)
    else:
        absent["SyncBatchNorm"] = "it does not support CPU tensors"

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = interleave(peers, rounds=rounds, steps=steps, warm_up=2, wait=wait)
    goal = {"SyncBatchNorm": 1.0}
    others = [name for name in peers if name != "ours"]
    what = f"batch norm over workers, {tuple(shape)}, {str(dtype).removeprefix('torch.')}"
    rows = [time_row(what, name, times["ours"], times[name], goal.get(name)).record() for name in others]
    return {"rows": rows, "times_s": times, "absent": absent}


def _passes(layer: nn.Module, images: Tensor) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            output = layer(images.detach().requires_grad_())
            output.backward(torch.ones_like(output))
            layer.zero_grad(set_to_none=True)

    return run


def exchanged_spans(batch: int) -> Spans:
    """One span of the whole batch, whose statistics are exchanged in the group of one."""
    layout = BatchLayout(batch, 1, 1)
    spans = Spans(layout, 0, "global")
    spans.join(SpanGroup(range(1), range(batch)), dist.group.WORLD, layout, 0)
    return spans


class _AlwaysSynchronised(nn.SyncBatchNorm):
    """SyncBatchNorm on the code path of several workers."""

    def forward(self, input: Tensor) -> Tensor:
        group = dist.group.WORLD
        apply: Callable[..., Tensor] = Exchange.apply
        return apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum, group, 1
        )


class SynchronisedLoop(MinimalLoop):
    """The minimal loop with SyncBatchNorm, which exchanges in a group of one, too. On a GPU."""

    def __init__(self, setting: Setting, batches: list[HostBatch]) -> None:
        super().__init__(setting, batches, nn.SyncBatchNorm.convert_sync_batchnorm)
        for layer in self.module.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = _AlwaysSynchronised


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            gc.collect()  # CUDA graphs with exchanges of this group: NCCL would wait for them
            dist.destroy_process_group()

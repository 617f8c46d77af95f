"""The floating-point operations of a model, and the peak of a device."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.telemetry.bottleneck import StepTimes
from resnet_dist.telemetry.gpu_peaks import gpu_peak

_MATRIX, _TIMES = 768, 4  # of the measurement on a CPU: a tenth of a second on a laptop


def flops_per_image(model: nn.Module, resolution: int) -> int:
    """FLOPs per image, forward and backward; a multiplication and an addition count as two.

    Counted by torch on a copy on the meta device, in evaluation mode; without the gradient with respect to the image.
    24.3e9 for ResNet-50 at 224 pixels.
    """
    weightless = copy.deepcopy(model).to("meta").eval()
    dtype = next(weightless.parameters()).dtype
    images = torch.empty(1, 3, resolution, resolution, dtype=dtype, device="meta")
    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with counter:
        weightless(images).sum().backward()
    return int(counter.get_total_flops())


def mean_flops_per_image(model: nn.Module, resolutions: Resolutions, windows: Sequence[StepTimes]) -> float:
    """The mean of `flops_per_image` over the steps of `windows`, of which there is at least one."""
    parts = [range(window.last_step - window.num_steps, window.last_step) for window in windows]
    steps = Counter(resolutions.at(step) for part in parts for step in part)
    return sum(flops_per_image(model, pixels) * num for pixels, num in steps.items()) / steps.total()


def _convolution_backward(
    gradient: list[int], images: list[int], weight: list[int], *others: Any, out_shape: object = None
) -> int:
    """FLOPs of the gradients of a convolution, from the shapes: each takes as many as the forward pass.

    torch (2.14) counts the gradient of the weight as many times as the convolution has groups.
    """
    transposed, output_mask = others[4], others[7]
    return int(conv_flop_count(images, weight, gradient, transposed) * sum(output_mask[:2]))


def peak_flops(device: torch.device, precision: str) -> tuple[float, str] | None:
    """The peak FLOP/s of `device` and its source; None for a GPU that is not in the table."""
    if device.type != "cuda":
        return _matrix_rate(torch.float64 if precision == "float64" else torch.float32)
    return gpu_peak(torch.cuda.get_device_name(device), precision)


def why_no_peak(device: torch.device, precision: str) -> str:
    """Why `peak_flops` returns None for a GPU."""
    return f"that of {torch.cuda.get_device_name(device)} in {precision} is not in resnet_dist/telemetry/gpu_peaks.py"


def _matrix_rate(dtype: torch.dtype) -> tuple[float, str]:
    """The CPU's rate in a matrix product, measured with this process's threads."""
    left, right = torch.rand((2, _MATRIX, _MATRIX), dtype=dtype)
    best_s = float("inf")
    for _ in range(_TIMES):
        started = time.perf_counter()
        torch.mm(left, right)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * _MATRIX**3 / best_s, "this CPU's rate in a matrix product, measured at the end"

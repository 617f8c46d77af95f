"""The time of a step on a GPU, by kind of kernel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Run

# A kernel has the first kind whose pattern its name contains; names are those of cuDNN, cuBLAS, NCCL, ATen, Inductor.
KINDS: Mapping[str, str] = {
    "copies": r"memcpy|memset|copy_kernel|direct_copy",
    "communication": r"nccl",
    "batch norm": r"batch_?norm|bn_fw|bn_bw|bnorm|triton_(per|red).*native_batch_norm",
    "layout changes": r"nchwTo|nhwcTo|convertTensor|transpose|permute",
    "convolutions": r"conv|wgrad|dgrad|fprop|implicit|xmma|cudnn|winograd|sm[0-9]+_.*(nhwc|nchw)",
    "matrix products": r"gemm|cutlass|cublas|splitK|gemv|nvjet",
    "optimizer": r"multi_tensor_apply|foreach|fused_sgd",
    "pooling": r"pool",
    "fused (Inductor)": r"triton",
    "element by element": r"elementwise|vectorized|threshold|relu|add|mul|reduce|sum|fill",
}
OTHER = "other"


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name.

    >>> kind_of("void cudnn::batchnorm_fwtr_nhwc_semiPersist"), kind_of("triton_poi_fused_relu_3"), kind_of("xyz")
    ('batch norm', 'fused (Inductor)', 'other')
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), OTHER)


def profiled(run: Run, steps: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds per step by kind, and the longest kernels; on a CPU operations in place of kernels.

    `busy_ms` is the sum over kernels: the rest of the wall time the device is idle.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        run(steps)
        if on_gpu:
            torch.cuda.synchronize(device)
    times: dict[str, float] = {}
    counts: dict[str, float] = {}
    for event in found.key_averages():
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # neither an operation that launches kernels nor a user annotation around some
        is_kernel = event.device_type != torch.autograd.DeviceType.CPU and not event.is_user_annotation
        if own_us > 0 and (is_kernel or not on_gpu):
            times[event.key] = own_us / 1000 / steps
            counts[event.key] = event.count / steps
    by_kind: defaultdict[str, float] = defaultdict(float)
    for name, own_ms in times.items():
        by_kind[kind_of(name)] += own_ms
    longest = sorted(times, key=lambda name: times[name], reverse=True)[:25]
    return {
        "busy_ms": sum(times.values()),
        "kernels": sum(counts.values()),
        "by_kind_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "longest": [{"name": name, "ms": times[name], "count": counts[name]} for name in longest],
    }
